// The rig: a Debian machine with a KVM of its own, in which the package is installed as `npm pack` makes it.
//
//   node test/rig/main.js shell
//   node test/rig/main.js images     what the other two make of packages, ahead of them
//   node test/rig/main.js test [test/rig/foo.test.ts...]     default: what `suites` below has
//   node test/rig/main.js bench [--rounds=5] [boot] [disk] [network]      default: these three
//   node test/rig/main.js bench [--rounds=5] initcalls words --words=audit=0,tsc=reliable
//   node test/rig/main.js bench --rounds=200 selinux     what a label adds to a launch; `npm run bench:selinux`
//
// CASEMATE_RIG_SELINUX: "module" for a machine that enforces Debian's policy with our module, "debian" without it.
// CASEMATE_RIG_CALLERS: as whom the tests run there, by default "root,user".
// CASEMATE_PATIENCE: how many times longer than usual a busy machine is waited for.
import { existsSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { conclude, Tally } from '../../scripts/suite.js';
import { kernelImage, missingHere, policyWithModule, rootImage } from './image.js';
import { results, runBench, runSuites, shell } from './machine.js';

process.chdir(fileURLToPath(new URL('../..', import.meta.url)));

/** What runs in the rig: its own tests, and those of everything that KVM and the kernel have a part in. */
const suites = ['test/rig', 'test/jail', 'test/kvm', 'test/vm'];

/** Where the tests of a file or folder are, compiled. */
function compiled(path) {
  if (!existsSync(path)) throw new Error(`${path} is not there`);
  return path.endsWith('.test.ts') ? `build/${path.slice(0, -'ts'.length)}js` : `build/${path}/*.test.js`;
}

async function test(paths) {
  const callers = (process.env.CASEMATE_RIG_CALLERS ?? 'root,user').split(',');
  const tallies = Object.fromEntries(callers.map((caller) => [`rig as ${caller}`, new Tally()]));
  const unfinished = new Set(Object.values(tallies));
  const started = performance.now();
  let tally;
  let failure;
  try {
    await runSuites(callers, paths.map(compiled), (line) => {
      const [, caller, ended] = /^# rig: suite as (\w+)(?: ended with (\d+))?$/.exec(line) ?? [];
      const said = caller === undefined ? line : `${line}, after ${Math.round((performance.now() - started) / 1000)} s`;
      console.log(said);
      if (caller !== undefined) tally = tallies[`rig as ${caller}`];
      tally?.add(line);
      if (ended !== undefined && unfinished.delete(tally)) tally.end(ended === '0' ? undefined : `exit code ${ended}`);
    });
  } catch (error) {
    failure = error.message;
    for (const one of unfinished) one.end(failure);
  }
  if (failure !== undefined) console.log(failure);
  console.log(`# The rig's logs are in ${results}`);
  conclude(tallies);
}

const [command, ...paths] = process.argv.slice(2);
const missing = missingHere();
if (command === 'images') {
  if (missing !== undefined) throw new Error(missing);
  rootImage();
  kernelImage();
  policyWithModule();
} else if (command === 'shell') {
  if (missing !== undefined) console.error(missing);
  process.exitCode = missing === undefined ? await shell() : 1;
} else if (command === 'bench') {
  const { values, positionals } = parseArgs({
    args: paths,
    allowPositionals: true,
    options: { rounds: { type: 'string', default: '5' }, words: { type: 'string', default: '' } },
  });
  const parts = positionals.length > 0 ? positionals : ['boot', 'disk', 'network'];
  if (missing !== undefined) throw new Error(missing);
  await runBench(parts, values.rounds, values.words, (line) => {
    console.log(line);
    if (/ ended with [1-9]/.test(line)) process.exitCode = 1;
  });
  console.log(`# The numbers are in ${results}/root`);
} else if (missing === undefined) {
  await test(paths.length > 0 ? paths : suites);
} else {
  const tally = new Tally();
  tally.say(`ok 1 - the rig # SKIP ${missing}`);
  conclude({ rig: tally });
}
