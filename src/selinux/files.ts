import {
  closeSync,
  constants,
  fstatSync,
  openSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  renameSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { join, resolve } from 'node:path';
import { isSystemError } from '../errors.js';
import type { NativeFile } from '../jail/native.js';
import { native } from '../native.js';
import { deniedOf } from './access.js';
import { categoriesOf, typeOf } from './context.js';
import { selinuxError } from './host.js';
import { setLabel, type VmLabel } from './label.js';
import { isLeased, journal } from './leases.js';

/** A file of a launch, or a descriptor that is the caller's. */
type Target = NativeFile | number;

const contextOf = (target: Target): string =>
  typeof target === 'number' ? native.selinuxFileContext(target) : target.context();

function write(target: Target, context: string): void {
  if (typeof target === 'number') native.selinuxSetFileContext(target, context);
  else target.setContext(context);
}

/** What was relabelled for a VM, as the journal has it. */
interface Entry {
  readonly path: string;
  readonly dev: string;
  readonly ino: string;
  readonly from: string;
  readonly to: string;
}

/**
 * The labels of the files of one VM. Private ones have the VM's categories while it runs, and what they had before after it;
 * shared ones that a monitor could not read get a type of their own, and keep it, for another VM may read them still.
 * By descriptor, each of them: a path could be exchanged meanwhile.
 *
 * @internal
 */
export class FileLabels {
  readonly #label: VmLabel;
  readonly #claimed: { readonly copy: NativeFile; readonly entry: Entry; readonly path: string }[] = [];

  constructor(label: VmLabel) {
    this.#label = label;
  }

  /** Of a socket that is connected for this VM, as who connects it. */
  get stream(): string {
    return this.#label.stream;
  }

  /** A memory file that was made for this VM. */
  own(file: NativeFile): void {
    setLabel(file, this.#label.image);
  }

  /** What this process has open for all its VMs: asked once whether those of this domain may read it. */
  shareOwn(descriptor: number): void {
    const key = `${descriptor} ${typeOf(this.#label.context)}`;
    if (ownShared.has(key)) return;
    this.share('options.guest', "the package's own", descriptor);
    ownShared.add(key);
  }

  /** What it reads, as others may. */
  share(option: string, name: string, target: Target, tclass: 'file' | 'blk_file' = 'file'): void {
    const { context, content } = this.#label;
    try {
      if (!isReadable(context, contextOf(target), tclass)) write(target, content);
    } catch (error) {
      throw labelError(option, name, content, error);
    }
  }

  /** What it writes. The journal is written first: whoever finds it knows what to restore. */
  claim(option: string, name: string, source: string | number, target: Target): void {
    const to = this.#label.image;
    recoverOnce();
    let copy: NativeFile | undefined;
    try {
      const path = typeof source === 'number' ? readlinkSync(`/proc/self/fd/${source}`) : resolve(source);
      copy = new native.File(target, 'copy');
      const [dev, ino] = copy.identity();
      const entryPath = join(journal, `${dev}-${ino}`);
      // What is there already is of a VM that died with Node, and knows the label from before that.
      const from = readEntry(entryPath)?.from ?? contextOf(target);
      const entry = { path, dev, ino, from, to };
      writeEntry(entryPath, entry);
      this.#claimed.push({ copy, entry, path: entryPath });
      write(target, to);
    } catch (error) {
      const last = this.#claimed.at(-1);
      if (last !== undefined && last.copy === copy) {
        this.#claimed.pop();
        rmSync(last.path, { force: true }); // its label is what it was
      }
      copy?.close();
      throw labelError(option, name, to, error);
    }
  }

  /** Gives files back the labels that they had; whether it could. */
  restore(): boolean {
    let isDone = true;
    for (const { copy, entry, path } of this.#claimed.splice(0)) {
      try {
        if (copy.context() === entry.to) copy.setContext(entry.from);
        rmSync(path, { force: true });
      } catch (error) {
        isDone = false;
        // The journal keeps it: `casemate selinux restore` tries again.
        process.emitWarning(`${entry.path} keeps its label ${entry.to}: ${(error as Error).message}`);
      } finally {
        copy.close();
      }
    }
    return isDone;
  }
}

const ownShared = new Set<string>();

/** Contexts without categories, of files that monitors may read: what is asked once for all VMs. */
const readable = new Set<string>();

function isReadable(source: string, target: string, tclass: 'file' | 'blk_file'): boolean {
  const key = `${typeOf(source)} ${target} ${tclass}`;
  if (readable.has(key)) return true;
  const isGranted = deniedOf(source, target, tclass, ['read', 'getattr']).length === 0;
  if (isGranted && categoriesOf(target).length === 0 && readable.size < 256) readable.add(key);
  return isGranted;
}

function labelError(option: string, name: string, context: string, cause: unknown): unknown {
  if (!isSystemError(cause)) return cause;
  return selinuxError(`${option}: ${name} cannot be labelled ${context}: ${cause.message}`, {
    step: option,
    remedy: remedies[cause.code] ?? 'May this caller relabel it? See `casemate selinux denials`.',
    cause,
  });
}

const remedies: Readonly<Record<string, string>> = {
  EOPNOTSUPP:
    'Its filesystem stores no labels: mount it with context=system_u:object_r:casemate_content_t:s0, or copy it.',
  ENOTSUP:
    'Its filesystem stores no labels: mount it with context=system_u:object_r:casemate_content_t:s0, or copy it.',
  EROFS:
    'Its filesystem is read-only: mount it with context=system_u:object_r:casemate_content_t:s0, or copy the file.',
  ENOSPC: 'Its filesystem has no room for a label: make some, or copy the file.',
  EPERM: 'Only its owner may label a file: label it once as root (chcon -t casemate_content_t), or copy it.',
  EACCES: 'The policy does not let this caller relabel it: see `casemate selinux denials`.',
};

/** Written whole or not at all. */
function writeEntry(path: string, entry: Entry): void {
  const unfinished = `${path}.${process.pid}`;
  rmSync(unfinished, { force: true }); // of one that died here with this number: in a container each start has the same
  writeFileSync(unfinished, JSON.stringify(entry), { mode: 0o600, flag: 'wx' });
  renameSync(unfinished, path);
}

/** An entry of this user's; anybody may put one there, and only its author asks for what it says. */
function readEntry(path: string): Entry | undefined {
  let fd: number;
  try {
    fd = openSync(path, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
  } catch (error) {
    if (isSystemError(error)) return undefined;
    throw error;
  }
  try {
    const stat = fstatSync(fd);
    if (!stat.isFile() || stat.uid !== process.geteuid?.()) return undefined;
    const entry = JSON.parse(readFileSync(fd, 'utf8')) as Entry;
    const texts = [entry.path, entry.dev, entry.ino, entry.from, entry.to];
    return texts.every((text) => typeof text === 'string') ? entry : undefined;
  } catch {
    return undefined;
  } finally {
    closeSync(fd);
  }
}

let hasRecovered = false;

function recoverOnce(): void {
  if (hasRecovered) return;
  hasRecovered = true;
  restoreLabels();
}

/**
 * Gives files back the labels that VMs left on them whose Node died: those of this user whose pair of categories nobody has
 * any more. Returns their paths.
 *
 * Each is opened by its path, and only what is the same file still, with the label that was written, is touched.
 */
export function restoreLabels(): string[] {
  let names: string[];
  try {
    names = readdirSync(journal);
  } catch {
    return [];
  }
  return names.flatMap((name) => {
    const path = join(journal, name);
    const entry = readEntry(path);
    return entry !== undefined && restoreOne(entry, path) ? [entry.path] : [];
  });
}

function restoreOne(entry: Entry, path: string): boolean {
  const [low, high] = categoriesOf(entry.to);
  if (low === undefined || high === undefined || isLeased([low, high])) return false;
  let fd: number | undefined;
  let isRestored = false;
  try {
    fd = openSync(entry.path, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
    const { dev, ino } = fstatSync(fd, { bigint: true });
    const isSame = String(dev) === entry.dev && String(ino) === entry.ino;
    if (isSame && native.selinuxFileContext(fd) === entry.to) {
      native.selinuxSetFileContext(fd, entry.from);
      isRestored = true;
    }
  } catch (error) {
    // One that is gone has no label to be restored; one that is out of reach may be tried again.
    if (!isSystemError(error) || error.code !== 'ENOENT') return false;
  } finally {
    if (fd !== undefined) closeSync(fd);
  }
  rmSync(path, { force: true });
  return isRestored;
}
