// node scripts/test.js [unit] [ava] [sanitized]
//
// unit: the native unit tests. ava: the suite in test/, with the coverage of src/.
// sanitized: the native unit tests as CMake builds them, with ASan and UBSan.
import { spawnSync } from 'node:child_process';
import { rmSync } from 'node:fs';
import { conclude, runTap, Tally } from './suite.js';

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

  sanitized() {
    // Not optimized: that takes a quarter of the time, and a report says the line that it is about.
    const options = ['--debug', '--target', 'casemate-unit', '--CDCASEMATE_SANITIZE=address;undefined'];
    const args = ['node_modules/cmake-js/bin/cmake-js', 'build', ...options, '--out', 'build/sanitized'];
    const build = spawnSync(process.execPath, args, {
      stdio: ['ignore', 'inherit', 'inherit'],
    });
    if (build.status === 0) return runTap('build/sanitized/casemate-unit', []);
    const unbuilt = new Tally();
    unbuilt.end(true);
    return unbuilt;
  },
};

const tallies = {};
for (const name of process.argv.slice(2)) tallies[name] = await suites[name]();
conclude(tallies);
