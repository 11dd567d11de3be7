import { accessSync, constants, existsSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { CasemateError } from './errors.js';
import { readLibc } from './host.js';
import type { JailBinding } from './jail/native.js';
import type { KvmBinding } from './kvm/native.js';
import type { SelinuxBinding } from './selinux/native.js';
import type { SystemBinding } from './system/native.js';

/** Everything native: each concern declares its own part. */
export interface NativeBinding extends JailBinding, KvmBinding, SelinuxBinding, SystemBinding {}

const require = createRequire(import.meta.url);
const self = fileURLToPath(import.meta.url);

/** A bundler puts this code into a file of its own, beside which no built file lies. */
const isBundled = !self.endsWith('/lib/native.js');

/** The package's own folder; in a bundle, the one that Node finds from there by its name. */
function packageFolder(): string {
  if (isBundled)
    try {
      return dirname(require.resolve('casemate/package.json'));
    } catch {}
  return join(dirname(self), '..');
}

const root = packageFolder();
const platform = `${process.platform}-${process.arch}`;

/** Where built files may lie: where a checkout builds them, where a package brings them along. What was built here is newer. */
const directories = [join(root, 'build', 'Release'), join(root, 'prebuilds', platform)];

const found = new Map<string, string>();

/** The path of a built file: the monitor, a guest. */
export function builtFile(name: string): string {
  let path = found.get(name);
  if (path === undefined) {
    path = directories.map((directory) => join(directory, name)).find(isReadable);
    if (path === undefined) throw notBuilt(name, [`${name} is neither in ${directories.join(' nor in ')}`], false);
    found.set(name, path);
  }
  return path;
}

function isReadable(path: string): boolean {
  try {
    accessSync(path, constants.R_OK);
    return true;
  } catch {
    return false;
  }
}

/** Tries each place in turn; where none has an addon that loads, the error says what was wrong with each. */
function load(): NativeBinding {
  const failures: string[] = [];
  let cause: unknown;
  for (const path of directories.map((directory) => join(directory, 'casemate.node'))) {
    if (!isReadable(path)) {
      failures.push(`${path} is not there`);
      continue;
    }
    try {
      return require(path) as NativeBinding;
    } catch (error) {
      cause = error;
      failures.push(`${path} does not load: ${(error as Error).message}`);
    }
  }
  throw notBuilt('casemate.node', failures, cause !== undefined, cause);
}

function notBuilt(step: string, tried: readonly string[], isThere: boolean, cause?: unknown): CasemateError {
  return new CasemateError('ERR_CASEMATE_NOT_BUILT', tried.join('; '), { step, remedy: remedy(isThere), cause });
}

/** The command that mends a missing file, or one that is there and does not load. */
function remedy(isThere: boolean): string {
  if (platform !== 'linux-x64') return `casemate is for Linux on x86-64, and this is ${platform}.`;
  const libc = readLibc();
  if (libc === 'musl' || libc === 'static')
    return `This Node is ${libc === 'musl' ? 'one for musl' : 'linked statically'}. Use one for glibc: node:24 instead of node:24-alpine.`;
  if (existsSync(join(root, 'binding.gyp'))) return 'Build it: `npm run build`.';
  if (isBundled && !existsSync(join(root, 'lib')))
    return 'A bundle has the code alone. Leave casemate out (`esbuild --external:casemate`), and have it beside: `npm install casemate`.';
  const again = `\`rm -r ${root} && npm install\``;
  return isThere
    ? `It needs glibc 2.28 or newer. Where that is there, install it again: ${again}.`
    : `Install it again: ${again}.`;
}

/**
 * The addon. This is the only file that knows where it comes from. It is loaded at the first use, so that
 * `casemate doctor` can say what is wrong with one that does not load; from then on this is the addon itself.
 */
export let native: NativeBinding = new Proxy({} as NativeBinding, {
  get(_, name) {
    native = load();
    return native[name as keyof NativeBinding];
  },
});
