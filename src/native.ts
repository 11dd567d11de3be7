import { accessSync, constants } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { CasemateError } from './errors.js';
import type { JailBinding } from './jail/native.js';
import type { KvmBinding } from './kvm/native.js';
import type { SelinuxBinding } from './selinux/native.js';
import type { SystemBinding } from './system/native.js';

/** Everything native: each concern declares its own part. */
export interface NativeBinding extends JailBinding, KvmBinding, SelinuxBinding, SystemBinding {}

const root = join(dirname(fileURLToPath(import.meta.url)), '..');

/** Where built files may lie: a package's prebuilt ones, or a checkout's own. */
const directories = [join(root, 'prebuilds', `${process.platform}-${process.arch}`), join(root, 'build', 'Release')];

const found = new Map<string, string>();

/** The path of a built file: the addon, the monitor, a guest. */
export function builtFile(name: string): string {
  let path = found.get(name);
  if (path === undefined) {
    path = findBuiltFile(name);
    found.set(name, path);
  }
  return path;
}

function findBuiltFile(name: string): string {
  for (const directory of directories) {
    const path = join(directory, name);
    try {
      accessSync(path, constants.R_OK);
      return path;
    } catch {}
  }
  throw new CasemateError('ERR_CASEMATE_NOT_BUILT', `${name} is neither in ${directories.join(' nor in ')}`, {
    step: name,
    remedy: 'In a checkout run `npm run build`. casemate is for Linux on x86-64 only.',
  });
}

function load(): NativeBinding {
  const path = builtFile('casemate.node');
  try {
    return createRequire(import.meta.url)(path) as NativeBinding;
  } catch (cause) {
    throw new CasemateError('ERR_CASEMATE_NOT_BUILT', `${path} does not load: ${(cause as Error).message}`, {
      step: 'casemate.node',
      remedy: 'Build it for this machine: `npm run build` (glibc 2.28 or newer, Node 20 or newer).',
      cause,
    });
  }
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
