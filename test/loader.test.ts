/** Where built files are looked for, and what is said where none is there or none loads. */
import { cpSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { pathToFileURL } from 'node:url';
import test, { type ExecutionContext } from 'ava';
import { builtFile } from '#lib/native.js';
import { root } from './helpers/index.js';
import { tellsOf } from './helpers/node.js';

const built = 'build/Release/casemate.node';
const prebuilt = 'prebuilds/linux-x64/casemate.node';
const noAddon = 'not an addon';

/** A package of what is compiled of src/, with these files of these contents. */
function packageOf(t: ExecutionContext, files: Readonly<Record<string, string | undefined>>): string {
  const folder = mkdtempSync(join(tmpdir(), 'casemate-loader-'));
  t.teardown(() => rmSync(folder, { recursive: true }));
  for (const name of ['lib', 'package.json']) cpSync(join(root, name), join(folder, name), { recursive: true });
  for (const [name, text] of Object.entries(files)) {
    mkdirSync(dirname(join(folder, name)), { recursive: true });
    if (text === undefined) cpSync(builtFile('casemate.node'), join(folder, name));
    else writeFileSync(join(folder, name), text);
  }
  return folder;
}

interface Told {
  readonly loaded: boolean;
  readonly code?: string;
  readonly step?: string;
  readonly remedy: string;
  readonly message: string;
}

/** What becomes of the first use of the addon, in a process that takes itself for one of this platform. */
const loading = (library: string, platform = 'linux', arch = 'x64') =>
  tellsOf<Told>(`
    Object.defineProperties(process, { platform: { value: '${platform}' }, arch: { value: '${arch}' } });
    const { native } = await import(${JSON.stringify(pathToFileURL(library))});
    try {
      native.landlockAbi();
      tell({ loaded: true });
    } catch (error) {
      tell({ loaded: false, ...failure(error) });
    }
  `);

const loadingOf = (folder: string, ...platform: string[]) => loading(join(folder, 'lib/native.js'), ...platform);

test('the addon of a package is found, and one that was built there is taken first', async (t) => {
  t.true((await loadingOf(packageOf(t, { [prebuilt]: undefined }))).loaded);
  t.true((await loadingOf(packageOf(t, { [built]: undefined, [prebuilt]: noAddon }))).loaded);
});

test('behind an addon that does not load the next one is tried', async (t) => {
  t.true((await loadingOf(packageOf(t, { [built]: noAddon, [prebuilt]: undefined }))).loaded);
});

test('where none loads, each is named with its reason, and the command that mends it', async (t) => {
  const folder = packageOf(t, { [prebuilt]: noAddon });
  const told = await loadingOf(folder);
  t.like(told, { loaded: false, code: 'ERR_CASEMATE_NOT_BUILT', step: 'casemate.node' });
  t.true(told.message.startsWith(`${join(folder, built)} is not there; ${join(folder, prebuilt)} does not load: `));
  t.regex(told.remedy, /glibc 2\.28 or newer/);
  t.true(told.remedy.includes(`\`rm -r ${folder} && npm install\``));
});

test('a package without its files is to be installed again, a checkout is to be built', async (t) => {
  const folder = packageOf(t, {});
  t.is((await loadingOf(folder)).remedy, `Install it again: \`rm -r ${folder} && npm install\`.`);
  t.is((await loadingOf(packageOf(t, { 'binding.gyp': '{}' }))).remedy, 'Build it: `npm run build`.');
});

test('on another platform nothing mends it, and the error says so', async (t) => {
  const folder = packageOf(t, {});
  const told = await loadingOf(folder, 'darwin', 'arm64');
  t.is(told.remedy, 'casemate is for Linux on x86-64, and this is darwin-arm64.');
  t.true(told.message.includes('prebuilds/darwin-arm64/casemate.node is not there'));
});

test('code that a bundler has moved finds the package, or says to leave it out', async (t) => {
  const project = mkdtempSync(join(tmpdir(), 'casemate-loader-'));
  t.teardown(() => rmSync(project, { recursive: true }));
  // What bundlers make of a module and those that it imports, as far as the loader can tell.
  cpSync(join(root, 'lib'), join(project, 'dist'), { recursive: true });
  writeFileSync(join(project, 'package.json'), '{ "type": "module" }');
  const bundle = join(project, 'dist/native.js');
  t.regex((await loading(bundle)).remedy, /esbuild --external:casemate/);
  cpSync(packageOf(t, { [prebuilt]: undefined }), join(project, 'node_modules/casemate'), { recursive: true });
  t.true((await loading(bundle)).loaded);
});
