// Brings a clone to where `npm start` and `npm test` can run, doing only what is
// missing or out of date. It runs before there are any dependencies, so it has none.
//
//   node scripts/setup.js [deps] [configure] [native] [ts] [tests] [bench]     default: deps native ts
import { spawnSync } from 'node:child_process';
import { existsSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { dirname } from 'node:path';
import { fileURLToPath } from 'node:url';
import { unlessSame } from './unless-same.js';
import { missingPackages } from './unpack-libraries.js';

process.chdir(fileURLToPath(new URL('..', import.meta.url)));
// make says what it builds, and nothing where there is nothing to build.
process.env.MAKEFLAGS = 's';

/** Runs a program to its end; one that fails ends this script with its exit code. */
function run(command, ...args) {
  const { status, error } = spawnSync(command, args, { stdio: ['ignore', 'inherit', 'inherit'] });
  if (error !== undefined) console.error(`${command}: ${error.message}`);
  if (status !== 0) process.exit(status ?? 1);
}

const gyp = (...args) => run(process.execPath, 'node_modules/node-gyp/bin/node-gyp.js', '--loglevel=error', ...args);
const tsc = (...args) => run(process.execPath, 'node_modules/typescript/bin/tsc', ...args);
const text = (path) => readFileSync(path, 'utf8');

/** Removes what was compiled from a file that is gone: tsc leaves it, and ava would go on running it. */
function prune(output, source) {
  if (!existsSync(output)) return;
  for (const file of readdirSync(output, { recursive: true })) {
    const [, name] = /^(.*)\.js$/.exec(file) ?? [];
    if (name === undefined || existsSync(`${source}/${name}.ts`)) continue;
    for (const extension of ['js', 'js.map', 'd.ts', 'd.ts.map'])
      rmSync(`${output}/${name}.${extension}`, { force: true });
  }
}

const steps = {
  /** What package-lock.json says. Its packages need no install scripts, and our own binding.gyp would count as one. */
  deps: () =>
    unlessSame('node_modules/.cache/casemate/deps', [text('package-lock.json')], () =>
      run('npm', 'ci', '--ignore-scripts', '--no-audit', '--no-fund'),
    ),

  /** Makefiles anew where their inputs changed; from then on make knows by itself what to build. */
  configure() {
    for (const tool of ['g++', 'make', 'python3']) {
      if (spawnSync(tool, ['--version']).error === undefined) continue;
      console.error(`casemate is built with ${tool}, which is not here: apt-get install ${tool}`);
      process.exit(1);
    }
    const missing = missingPackages();
    if (missing.length > 0)
      console.error(`casemate-unpack, which bzImages need, is not built: apt-get install ${missing.join(' ')}`);
    const files = ['binding.gyp', 'native/sources.json', 'package-lock.json'];
    const inputs = [...files.map(text), process.version, ...missing];
    // Most installations of Node bring its headers along; node-gyp would fetch them nevertheless.
    const prefix = dirname(dirname(process.execPath));
    const asked = process.env.npm_config_nodedir !== undefined;
    const headers = !asked && existsSync(`${prefix}/include/node/node_version.h`) ? [`--nodedir=${prefix}`] : [];
    return unlessSame('build/.configured', inputs, () => gyp('configure', ...headers));
  },

  /** The addon, the monitor, the guests and the native unit tests, to build/Release/. */
  async native() {
    await steps.configure();
    gyp('build', '-j', String(availableParallelism()));
  },

  /** src/ to lib/. */
  ts() {
    prune('lib', 'src');
    tsc('--build');
  },

  /** test/ to build/test/, and what it tests: src/ to lib/, bench/ to build/bench/. */
  tests() {
    prune('lib', 'src');
    prune('build/bench', 'bench');
    prune('build/test', 'test');
    tsc('--build', 'test');
  },

  /** bench/ to build/bench/, and src/ to lib/. */
  bench() {
    prune('lib', 'src');
    prune('build/bench', 'bench');
    tsc('--build', 'bench');
  },
};

const asked = process.argv.slice(2);
for (const step of asked.length > 0 ? asked : ['deps', 'native', 'ts']) await steps[step]();
