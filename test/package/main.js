// The package as `npm pack` makes it: what is in it, and that it works in an empty project, installed from a lock file with
// no compiler in reach, by two versions of npm, imported, required and bundled. Every check counts as a test.
//
//   node test/package/main.js
import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import {
  accessSync,
  constants,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { build } from 'esbuild';
import { publint } from 'publint';
import { formatMessage } from 'publint/utils';
import { checkBinaries } from '../../scripts/binaries.js';
import { fromNpm, nodeFromNpm } from '../../scripts/from-npm.js';
import { conclude, Tally } from '../../scripts/suite.js';

process.chdir(fileURLToPath(new URL('../..', import.meta.url)));
const work = mkdtempSync(join(tmpdir(), 'casemate-package-'));
process.on('exit', () => rmSync(work, { recursive: true, force: true }));

/** Runs a program to its good end and returns what it printed; one that fails throws all that it said. */
function run(command, args, { cwd = '.', env = process.env } = {}) {
  const { status, signal, error, stdout, stderr } = spawnSync(command, args, {
    cwd,
    env,
    encoding: 'utf8',
    timeout: 300_000,
    killSignal: 'SIGKILL',
  });
  if (status === 0) return stdout;
  throw new Error(`${command} ${args.join(' ')} ended with ${error?.message ?? status ?? signal}\n${stdout}${stderr}`);
}

/** A Node that this npm runs on: npm 12 asks for 24.15, or 22.22.2, or 26. */
const nodes = { 11: () => process.execPath, 12: () => nodeFromNpm('24') };

/** A folder with nothing but what npm itself starts: no compiler, no make, no python. */
function bareBin(node) {
  const folder = mkdtempSync(join(work, 'bin-'));
  symlinkSync(node, join(folder, 'node'));
  symlinkSync('/bin/sh', join(folder, 'sh'));
  return folder;
}

/** An empty project with the package in it, from a lock file; the folder, and the Node it is for. */
function project(tarball, npm, flags) {
  const folder = mkdtempSync(join(work, `npm-${npm}-`));
  const node = nodes[npm]();
  const env = { HOME: folder, PATH: bareBin(node), npm_config_cache: join(folder, '.npm') };
  const command = (...args) =>
    run(node, [join(fromNpm('npm', npm), 'bin/npm-cli.js'), '--no-audit', '--no-fund', ...args], { cwd: folder, env });
  writeFileSync(join(folder, 'package.json'), '{ "private": true }\n');
  command('install', '--offline', tarball);
  rmSync(join(folder, 'node_modules'), { recursive: true });
  command('ci', '--offline', ...flags);
  return { folder, node };
}

/** The first example of the README, as it stands there and as a CommonJS module. */
function examples() {
  const [, esm = ''] = /^```js\n(import .*?)^```$/ms.exec(readFileSync('README.md', 'utf8')) ?? [];
  const [, names = '', rest = ''] = /^import (\{.*?\}) from 'casemate';\n(.*)$/s.exec(esm) ?? [];
  if (rest === '') throw new Error('The first example of the README does not begin with its import any more');
  const imported = process.features.require_module ? "require('casemate')" : "await import('casemate')";
  return { esm, cjs: `(async () => {\nconst ${names} = ${imported};\n${rest}})();\n` };
}

/** Runs an example, and looks at what it says of its jail and its end. */
function runExample({ folder, node }, file) {
  const said = run(node, [join(folder, file)], { cwd: folder });
  for (const part of ['layers as asked for: true', 'Hello from inside', "{ reason: 'exit', code: 0 }"])
    if (!said.includes(part)) throw new Error(`${file} did not say ${JSON.stringify(part)}:\n${said}`);
}

function canLaunch() {
  try {
    accessSync('/dev/kvm', constants.R_OK | constants.W_OK);
    return true;
  } catch {
    return false;
  }
}

const tally = new Tally();

/** Counts a check; what it gives is what later ones need. */
async function check(title, body, reason) {
  if (reason !== undefined) {
    tally.say(`ok - ${title} # SKIP ${reason}`);
    return undefined;
  }
  try {
    const value = await body();
    tally.say(`ok - ${title}`);
    return value;
  } catch (error) {
    console.log(error.message);
    tally.say(`not ok - ${title}`);
    return undefined;
  }
}

function pack() {
  run('npm', ['pack', '--pack-destination', work]);
  const [name] = readdirSync(work).filter((file) => file.endsWith('.tgz'));
  run('tar', ['-xzf', join(work, name), '-C', work]);
  return join(work, name);
}

const unpacked = join(work, 'package');

function checkContents() {
  const files = readdirSync(unpacked, { recursive: true, withFileTypes: true }).filter((entry) => entry.isFile());
  const paths = files.map(({ parentPath, path, name }) => join(parentPath ?? path, name).slice(unpacked.length + 1));
  const allowed =
    /^(lib|src|policy|prebuilds\/linux-x64)\/|^native\/guest\/[\w-]+\.(h|ld)$|^(package\.json|README\.md|LICENSE)$/;
  const strangers = paths.filter((path) => !allowed.test(path));
  if (strangers.length > 0) throw new Error(`It has ${strangers.join(', ')}`);
  const { scripts = {}, dependencies = {} } = JSON.parse(readFileSync(join(unpacked, 'package.json'), 'utf8'));
  const run = ['preinstall', 'install', 'postinstall', 'prepare'].filter((name) => scripts[name] !== undefined);
  if (run.length > 0 || Object.keys(dependencies).length > 0)
    throw new Error(`It is installed with ${[...run, ...Object.keys(dependencies)].join(', ')}`);
}

function checkBill() {
  const folder = join(unpacked, 'prebuilds/linux-x64');
  const { components, dependencies } = JSON.parse(readFileSync(join(folder, 'sbom.cdx.json'), 'utf8'));
  const isProgram = (path) => readFileSync(join(folder, path)).subarray(0, 4).toString('latin1') === '\x7fELF';
  const files = readdirSync(folder, { recursive: true }).filter((path) => !['unpack', 'licenses'].includes(path));
  for (const path of files.filter(isProgram)) {
    const hash = createHash('sha256')
      .update(readFileSync(join(folder, path)))
      .digest('hex');
    const component = components.find(({ name }) => name === path);
    if (component?.hashes[0].content !== hash) throw new Error(`${path} is not the one of the bill of materials`);
  }
  const known = new Set(components.map((component) => component['bom-ref']));
  const linked = dependencies.find(({ ref }) => ref === 'unpack/casemate-unpack').dependsOn;
  if (linked.length < 7 || !linked.every((reference) => known.has(reference)))
    throw new Error(`The bill of materials of casemate-unpack lists ${linked.join(', ')}`);
}

async function checkPublint(tarball) {
  const { messages, pkg } = await publint({
    pack: { tarball: readFileSync(tarball).buffer },
    strict: true,
  });
  if (messages.length > 0) throw new Error(messages.map((message) => formatMessage(message, pkg)).join('\n'));
}

async function bundle(folder, entry, format, external) {
  const outfile = join(
    folder,
    `bundle-of-${entry}-${external.length > 0 ? 'without' : 'with'}.${format === 'esm' ? 'mjs' : 'cjs'}`,
  );
  const entryPoints = [join(folder, entry)];
  await build({
    entryPoints,
    outfile,
    format,
    external,
    bundle: true,
    platform: 'node',
    target: 'node20',
    logLevel: 'error',
  });
  return outfile.slice(folder.length + 1);
}

const noKvm = canLaunch() ? undefined : 'no /dev/kvm that this user may open';

const tarball = await check('npm pack makes a package', pack);
if (tarball !== undefined) {
  await check('it has what it needs and nothing else, no install script and no dependency', checkContents);
  await check('its programs are hardened, and load where there is glibc 2.28', () =>
    checkBinaries(join(unpacked, 'prebuilds/linux-x64')),
  );
  await check('its bill of materials is that of these programs', checkBill);
  await check('publint finds nothing', () => checkPublint(tarball));
  // The package is ESM: that a CommonJS module has to require() an ES module is what attw would say of every entry.
  await check('attw finds nothing', () =>
    run(process.execPath, [
      'node_modules/@arethetypeswrong/cli/dist/index.js',
      tarball,
      '--profile',
      'esm-only',
      '--no-color',
    ]),
  );
  const { esm, cjs } = examples();
  // npm 11 runs install scripts unless told otherwise, npm 12 none; what there is to run, or to build, nothing here could.
  await check('npm 11 --ignore-scripts installs it from a lock file, offline', () =>
    project(tarball, '11', ['--ignore-scripts']),
  );
  for (const npm of ['11', '12']) {
    const made = await check(`npm ${npm} installs it from a lock file, offline, with no compiler`, () => {
      const made = project(tarball, npm, []);
      writeFileSync(join(made.folder, 'example.mjs'), esm);
      writeFileSync(join(made.folder, 'example.cjs'), cjs);
      return made;
    });
    if (made === undefined) continue;
    await check(`the command is there (npm ${npm})`, () => {
      const said = run(made.node, [join(made.folder, 'node_modules/.bin/casemate'), '--version']).trim();
      const { version } = JSON.parse(readFileSync('package.json', 'utf8'));
      if (said !== version) throw new Error(`casemate --version says ${said}`);
    });
    for (const file of ['example.mjs', 'example.cjs'])
      await check(`the README's example runs as ${file} (npm ${npm})`, () => runExample(made, file), noKvm);
    if (npm === '12') continue; // how it was installed no bundle can tell
    for (const [entry, format, external, what] of [
      ['example.mjs', 'esm', ['casemate'], 'as ESM, casemate left out'],
      ['example.cjs', 'cjs', ['casemate'], 'as CommonJS, casemate left out'],
      ['example.mjs', 'esm', [], 'as ESM, all but the addon in it'],
    ])
      await check(
        `the README's example runs bundled by esbuild: ${what}`,
        async () => runExample(made, await bundle(made.folder, entry, format, external)),
        noKvm,
      );
  }
}
conclude({ package: tally });
