/**
 * node build/test/hostile/escape/main.js [--matrix]
 *
 * All tries with all layers, with each of them off, with each alone, with none, and without any jail. Says what is not
 * as it should be; with --matrix what stopped each try. Where VMs have labels, these are one of the layers.
 */
import { parseArgs } from 'node:util';
import { layersHere, type Setting, settingName, tryAll } from './escape.js';
import { surprises } from './expected.js';

const { values } = parseArgs({ options: { matrix: { type: 'boolean', default: false } } });

const alone = layersHere.map((only): Setting => ({ only }));
const without = layersHere.map((layer): Setting => ({ without: layer }));
const settings: Setting[] = ['strict', ...without, ...alone, 'none', 'host'];

if (process.geteuid?.() !== 0) {
  console.log('1..0 # SKIP layers can be shown one by one only as root');
  process.exit();
}

const outcomes = await tryAll(settings);
const outcome = (setting: Setting, i: number): string => outcomes[settings.indexOf(setting)]?.[i]?.outcome ?? '';

if (values.matrix) {
  console.log(`Each try with what stopped it: with all layers, without the filter of system calls, by what a launch does
whatever its layers, and by each layer alone where that did not. A dot is a try that succeeded.
`);
  const first = (setting: Setting, i: number) => outcome(setting, i).replace('open', '.');
  const head = ['', 'strict', 'no filter', 'launch', ...layersHere];
  const rows = (outcomes[0] ?? []).map(({ group, name }, i) => [
    `${group}: ${name}`,
    first('strict', i),
    first(without[layersHere.indexOf('seccomp')] as Setting, i),
    first('none', i),
    ...alone.map((setting) => (outcome('none', i) === 'open' ? first(setting, i) : '')),
  ]);
  const widths = head.map((_, column) => Math.max(...[head, ...rows].map((row) => row[column]?.length ?? 0)));
  for (const row of [head, ...rows])
    console.log(
      row
        .map((cell, i) => cell.padEnd(widths[i] ?? 0))
        .join('  ')
        .trimEnd(),
    );
  console.log();
}

settings.forEach((setting, i) => {
  const wrong = surprises(setting, outcomes[i] ?? []);
  const open = (outcomes[i] ?? []).filter((tried) => tried.outcome === 'open').length;
  console.log(
    `${wrong.length === 0 ? 'ok' : 'not ok'} ${i + 1} - ${settingName(setting)}: ${open} of ${outcomes[i]?.length} succeed`,
  );
  for (const each of wrong) console.log(`  # ${each}`);
  if (wrong.length > 0) process.exitCode = 1;
});
console.log(`1..${settings.length}`);
