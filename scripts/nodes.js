// Runs the ava suite on other versions of Node, with the one addon that was
// built: Node-API promises that it loads in all of them. Without test/hostile:
// what a taken-over monitor or a guest tries meets the kernel, and no Node; nor
// the documents, which are read once. And what of the soak meets a Node's end, of
// which each version has its own.
//
//   node scripts/nodes.js [major...]     default: 20 22 24 26, but the one that runs this
import { spawnSync } from 'node:child_process';
import { delimiter, dirname } from 'node:path';
import { nodeFromNpm } from './from-npm.js';
import { conclude, runTap } from './suite.js';

const own = process.versions.node.split('.')[0];
const asked = process.argv.slice(2);
const majors = asked.length > 0 ? asked : ['20', '22', '24', '26'].filter((major) => major !== own);

const files = ['build/test/**/*.test.js', '!build/test/hostile/**', '!build/test/docs.test.js'];
const tallies = {};
for (const major of majors) {
  const path = nodeFromNpm(major);
  console.log(`\n# ${spawnSync(path, ['-p', '"Node " + process.version'], { encoding: 'utf8' }).stdout.trim()}`);
  const run = (...args) =>
    runTap(path, args, { PATH: dirname(path) + delimiter + process.env.PATH, CASEMATE_TALLY: undefined });
  tallies[`ava on Node ${major}`] = await run('node_modules/ava/entrypoints/cli.mjs', '--tap', ...files);
  tallies[`soak on Node ${major}`] = await run('test/soak/main.js', '--short', 'workers', 'nodes');
}
conclude(tallies);
