// node scripts/test.js [unit] [ava] [sanitized] [trapping] [races] [escape] [faults]
//
// unit: the native unit tests. ava: the suite in test/, with the coverage of src/.
// sanitized: the native unit tests as CMake builds them, with ASan and UBSan.
// trapping: VMs of hostile and of ordinary guests, with a monitor that ends where UBSan finds something.
// races: those of the unit tests that have threads, with TSan.
// escape, faults: what `npm run test:escape` and `npm run test:faults` do, counted.
import { spawnSync } from 'node:child_process';
import { rmSync } from 'node:fs';
import { built } from './cmake.js';
import { conclude, runTap, Tally } from './suite.js';
import { trappingCheckout } from './trapping.js';

const builtWith = (sanitizers, folder, target) => built(folder, target, `--CDCASEMATE_SANITIZE=${sanitizers}`);

function unbuilt() {
  const tally = new Tally();
  tally.end('it does not build');
  return tally;
}

const suites = {
  unit: () => runTap('build/Release/casemate-unit', []),

  async ava() {
    rmSync('coverage', { recursive: true, force: true });
    // Inherited by every process that a test starts, so the command line counts too.
    const tally = await runTap(process.execPath, ['node_modules/ava/entrypoints/cli.mjs', '--tap'], {
      NODE_V8_COVERAGE: 'coverage/raw',
    });
    spawnSync(process.execPath, ['node_modules/c8/bin/c8.js', 'report'], { stdio: ['ignore', 'inherit', 'inherit'] });
    return tally;
  },

  sanitized: () =>
    builtWith('address;undefined', 'sanitized', 'casemate-unit')
      ? runTap('build/sanitized/casemate-unit', [])
      : unbuilt(),

  async trapping() {
    if (!builtWith('address;undefined', 'sanitized', 'casemate-vmm-trapping')) return unbuilt();
    const files = [
      'hostile/guests/guests',
      'hostile/drivers',
      'vm/console',
      'vm/ends',
      'vm/images',
      'vm/linux',
      'vm/memory',
      'vm/vsock',
    ];
    const ava = ['node_modules/ava/entrypoints/cli.mjs', '--tap', ...files.map((file) => `build/test/${file}.test.js`)];
    // CI has it run beside other tests, with the time that they leave.
    const tally = await runTap(process.execPath, ava, { CASEMATE_PATIENCE: '4' }, trappingCheckout());
    const { signal } = spawnSync('build/sanitized/casemate-trap', ['once more']);
    const isFound = signal === 'SIGILL' && spawnSync('build/sanitized/casemate-trap').status === 0;
    tally.say(
      `${isFound ? 'ok' : 'not ok'} - a shift that is undefined ends such a program, and one that is not does not`,
    );
    return tally;
  },

  async races() {
    if (!builtWith('thread', 'races', 'casemate-races')) return unbuilt();
    // Where its shadow lies nothing else may: not on every kernel is that so with random addresses.
    const fixed = ['--addr-no-randomize'];
    const tally = await runTap('setarch', [...fixed, 'build/races/casemate-races']);
    const race = (...args) =>
      spawnSync('setarch', [...fixed, 'build/races/casemate-race', ...args], { encoding: 'utf8' });
    const found = race().status === 0 && /data race/.test(race('without a lock').stderr);
    tally.say(`${found ? 'ok' : 'not ok'} - a race is found where the lock is left out, and only there`);
    return tally;
  },
};

for (const name of ['escape', 'faults'])
  suites[name] = () => runTap(process.execPath, [`build/test/hostile/${name}/main.js`]);

const tallies = {};
for (const name of process.argv.slice(2)) tallies[name] = await suites[name]();
conclude(tallies);
