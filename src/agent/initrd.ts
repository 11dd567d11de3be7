import { readFileSync, statSync } from 'node:fs';
import { basename, join } from 'node:path';
import { CasemateError, isSystemError } from '../errors.js';
import { cpio } from '../image/cpio.js';
import type { Entry } from '../image/tree.js';
import type { NativeFile } from '../jail/native.js';
import { builtFile, native } from '../native.js';
import { agentAbi } from './protocol.js';

/** Archives that were made, in sealed memory: kept for the launches to come. */
const made = new Map<string, NativeFile>();

/** How many sets of modules are kept; who launches more kernels than that makes some archives again. */
const mostKept = 8;

/** What is asked for by name, and what the agent cannot do without. */
const necessary = ['virtio_mmio', 'vmw_vsock_virtio_transport'];

/**
 * The initrd with the agent, and with modules of a kernel where it has them: a file that is kept for more launches.
 *
 * @param folder - of the modules of the guest's kernel: `/lib/modules/<version>`.
 * @param wanted - names of further modules; those that the kernel has not, or has built in, are left out.
 * @throws CasemateError ERR_CASEMATE_FILE where there are no such modules.
 */
export function agentInitrd(folder: string | undefined, wanted: readonly string[]): NativeFile {
  const modules = folder === undefined ? [] : [...necessary, ...wanted];
  // Depmod writes that file whenever modules come or go.
  const key = JSON.stringify([
    folder,
    folder && fromFolder(folder, () => statSync(join(folder, list)).mtimeMs),
    modules,
  ]);
  let archive = made.get(key);
  if (archive === undefined) {
    archive = new native.File(build(folder, modules), 'kept');
    for (const [oldest, file] of made) {
      if (made.size < mostKept) break;
      made.delete(oldest);
      file.close();
    }
    made.set(key, archive);
  }
  return archive;
}

const inArchive = (path: string): string => path.slice(1);

function build(folder: string | undefined, modules: readonly string[]): Buffer {
  const entries: Entry[] = [
    // Where an initrd has none, init has no console.
    { type: 'character', path: 'dev/console', mode: 0o600, major: 5, minor: 1 },
    { type: 'file', path: inArchive(agentAbi.path), mode: 0o700, contents: readFileSync(builtFile('casemate-agent')) },
  ];
  for (const path of folder === undefined ? [] : modulePaths(folder, modules)) {
    entries.push({
      type: 'file',
      path: `${inArchive(agentAbi.modules)}/${basename(path)}`,
      mode: 0o600,
      contents: fromFolder(path, () => readFileSync(path)),
    });
  }
  return cpio(entries);
}

const list = 'modules.dep';

const nameOf = (path: string): string =>
  basename(path)
    .replace(/\.ko(\.\w+)?$/, '')
    .replaceAll('-', '_');

/**
 * Paths of modules and of all that they need; modules.dep(5) has a line for each, with all that it needs. That comes behind
 * it, for what a folder of an initramfs gets last its readers find first: the agent then has none to load twice.
 */
export function modulePaths(folder: string, names: readonly string[]): string[] {
  const lines = fromFolder(folder, () => readFileSync(join(folder, list), 'utf8')).split('\n');
  const needs = new Map<string, readonly string[]>();
  for (const line of lines) {
    const [path, others] = line.split(':') as [string, string?];
    if (others !== undefined) needs.set(nameOf(path), [path, ...others.split(' ').filter(Boolean)]);
  }
  for (const name of necessary) {
    if (names.includes(name) && !needs.has(name) && !isBuiltIn(folder, name)) {
      throw modulesError(folder, `has no ${name}: a guest with this kernel cannot be reached`);
    }
  }
  return [...new Set(names.flatMap((name) => needs.get(name) ?? []))].map((path) => join(folder, path));
}

function isBuiltIn(folder: string, name: string): boolean {
  const lines = fromFolder(folder, () => readFileSync(join(folder, 'modules.builtin'), 'utf8')).split('\n');
  return lines.some((line) => nameOf(line) === name);
}

function fromFolder<T>(folder: string, read: () => T): T {
  try {
    return read();
  } catch (cause) {
    if (!isSystemError(cause)) throw cause;
    throw modulesError(folder, `cannot be read: ${cause.message}`, cause);
  }
}

function modulesError(folder: string, what: string, cause?: unknown): CasemateError {
  return new CasemateError('ERR_CASEMATE_FILE', `options.agent.modules: ${folder} ${what}`, {
    step: 'options.agent.modules',
    remedy: "Pass the folder of this kernel's modules, /lib/modules/<version>, as depmod leaves it.",
    ...(cause !== undefined && { cause }),
  });
}
