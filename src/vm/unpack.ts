import { closeSync, constants, fstatSync, openSync, read, readSync } from 'node:fs';
import { promisify } from 'node:util';
import { CasemateError, isSystemError } from '../errors.js';
import { encodePlan } from '../jail/encode.js';
import {
  type ChildEnd,
  caller,
  devNull,
  type Launching,
  type LaunchOutcome,
  type LaunchPlan,
  launchError,
  launchPlan,
  runLaunch,
  unborn,
} from '../jail/launcher.js';
import type { NativeFile } from '../jail/native.js';
import { type Jail, programPlan } from '../jail/profiles.js';
import { builtFile, native } from '../native.js';
import { labelFor, labelOf, setLabel } from '../selinux/label.js';
import type { FileSource } from './files.js';
import { bare, wire } from './wire.js';

/**
 * native/unpack/abi.h. A test compiles that header and compares.
 * @internal
 */
export const unpackFormat = {
  descriptors: { image: 4, output: 5 },
  statuses: {
    done: 0,
    system: 1,
    noMemory: 2,
    notBzImage: 3,
    truncated: 4,
    unknown: 5,
    damaged: 6,
    tooBig: 7,
    notElf: 8,
  },
  maxSize: 512 * 1024 * 1024,
} as const;

/** Where an image says that it follows the boot protocol of Linux, and how; Documentation/arch/x86/boot.rst. */
const magicOffset = 0x202;
const magic = 'HdrS';

/** Kernels kept unpacked, the last ones used: each takes its size in memory, which the launches of it share. */
const keptKernels = 4;

/** By the SHA-256 of their images. */
const kernels = new Map<string, Promise<NativeFile>>();

/** What files contained that need not be read again; more of them than of kernels, for they are cheap. */
const keptFiles = 64;
const files = new Map<string, string>();

/**
 * The kernel in a bzImage, a sealed memory file; undefined where `source` is something else, or cannot be read, which
 * whoever opens it finds out. An image is unpacked once, however many launches of it there are, and by a jailed program
 * of its own: only four bytes of it are looked at here.
 *
 * @throws CasemateError ERR_CASEMATE_GUEST_IMAGE, or as a launch would.
 */
export async function unpackedKernel(source: FileSource, jail: Jail): Promise<NativeFile | undefined> {
  if (source instanceof Uint8Array) {
    const start = Buffer.from(source.buffer, source.byteOffset, source.byteLength);
    // A copy: it may be written to while we wait.
    return isImage(start.subarray(magicOffset)) ? unpackedOnce(Buffer.from(start), jail) : undefined;
  }
  if (typeof source !== 'string') return unpackedFile(source.fd, jail);
  let fd: number;
  try {
    fd = openSync(source, constants.O_RDONLY | constants.O_NONBLOCK);
  } catch (error) {
    if (isSystemError(error)) return undefined;
    throw error;
  }
  try {
    return await unpackedFile(fd, jail);
  } finally {
    closeSync(fd);
  }
}

const isImage = (bytes: Buffer): boolean => bytes.toString('latin1', 0, magic.length) === magic;

async function unpackedFile(fd: number, jail: Jail): Promise<NativeFile | undefined> {
  const start = Buffer.alloc(magic.length);
  try {
    if (!fstatSync(fd).isFile()) return undefined;
    readSync(fd, start, 0, start.length, magicOffset);
  } catch (error) {
    if (isSystemError(error)) return undefined;
    throw error;
  }
  if (!isImage(start)) return undefined;

  const identity = identityOf(fd);
  const known = files.get(identity ?? '');
  const kept = known === undefined ? undefined : kernels.get(known);
  if (known !== undefined && kept !== undefined) return keep(known, kept);
  const bytes = await readAll(fd);
  const hash = await hashOf(bytes);
  if (identity !== undefined) remember(files, identity, hash, keptFiles);
  return unpackedOnce(bytes, jail, hash);
}

/** While this stays the same a file has the same contents; undefined where it was changed just now. */
function identityOf(fd: number): string | undefined {
  const { dev, ino, size, mtimeNs, ctimeNs, ctimeMs } = fstatSync(fd, { bigint: true });
  // Two changes within one tick of the file system's clock cannot be told apart.
  return Date.now() - Number(ctimeMs) < 2000 ? undefined : [dev, ino, size, mtimeNs, ctimeNs].join(' ');
}

async function readAll(fd: number): Promise<Buffer> {
  const { size } = fstatSync(fd);
  if (size > unpackFormat.maxSize) throw imageError(`it is larger than ${unpackFormat.maxSize / 2 ** 20} MiB`);
  const bytes = Buffer.allocUnsafe(size);
  let length = 0;
  while (length < size) {
    const { bytesRead } = await promisify(read)(fd, bytes, length, size - length, length);
    if (bytesRead === 0) break; // It has become shorter meanwhile.
    length += bytesRead;
  }
  return bytes.subarray(0, length);
}

const hashOf = async (bytes: Buffer): Promise<string> =>
  Buffer.from(await crypto.subtle.digest('SHA-256', bytes)).toString('hex');

/** What others unpack already is waited for. What could not be unpacked is tried anew. */
async function unpackedOnce(bytes: Buffer, jail: Jail, known?: string): Promise<NativeFile> {
  const hash = known ?? (await hashOf(bytes));
  const kept = kernels.get(hash);
  if (kept !== undefined) return keep(hash, kept);
  const kernel = unpack(bytes, jail);
  kernel.catch(() => kernels.delete(hash));
  return keep(hash, kernel);
}

/** Notes that this is the kernel that was used last. Those that go are closed with their objects. */
function keep(hash: string, kernel: Promise<NativeFile>): Promise<NativeFile> {
  kernels.delete(hash);
  remember(kernels, hash, kernel, keptKernels);
  return kernel;
}

function remember<T>(map: Map<string, T>, key: string, value: T, most: number): void {
  map.set(key, value);
  for (const oldest of map.keys()) {
    if (map.size <= most) break;
    map.delete(oldest);
  }
}

async function unpack(bytes: Buffer, jail: Jail): Promise<NativeFile> {
  const label = labelOf(labelFor(jail.selinux));
  const plan = planFor(jail, label !== undefined);
  const image = new native.File(bytes); // Sealed: what is unpacked is what was hashed.
  const output = new native.File(0);
  try {
    if (label !== undefined) for (const file of [image, output]) setLabel(file, label.image);
    const descriptors = { null: devNull(), image, output };
    const { end, failure } = await ended(runLaunch({ plan, descriptors, label: label?.context }));
    if (failure !== undefined) throw failure.stage === 'monitor' ? unready(failure) : launchError(failure);
    if (end.code !== unpackFormat.statuses.done) throw statusError(end);
    output.seal();
    if (label !== undefined) setLabel(output, label.content); // from now on all VMs may read it
    return output;
  } catch (error) {
    output.close();
    throw error;
  } finally {
    image.close();
    label?.lease?.close(); // which nobody else needed to have
  }
}

/** How it ended, and where its launch failed how that did. */
async function ended({ child, done }: Launching): Promise<{ end: ChildEnd; failure: LaunchOutcome | undefined }> {
  let failure: LaunchOutcome | undefined;
  const end = await new Promise<ChildEnd>((resolve) => {
    child.watch(
      () => {},
      (code, signal, memoryEvents) => resolve({ code, signal, memoryEvents }),
    );
    done.then((outcome) => {
      failure = outcome;
      if (child.pid === 0) resolve(unborn);
    });
  });
  return { end, failure };
}

const unready = ({ error }: LaunchOutcome): CasemateError =>
  new CasemateError('ERR_CASEMATE_MONITOR', 'casemate-unpack ended before it was ready', {
    step: 'options.kernel',
    remedy: 'Please report this, with the output of `casemate doctor`.',
    cause: error,
  });

const plans = new Map<string, LaunchPlan>();

function planFor(jail: Jail, isLabelled: boolean): LaunchPlan {
  const key = `${jail.key} ${isLabelled}`;
  let plan = plans.get(key);
  if (plan === undefined) {
    const path = program();
    const { control, lease } = wire.descriptors;
    const encoded = encodePlan(
      programPlan(jail, caller(), {
        folder: path.slice(0, path.lastIndexOf('/')),
        name: path.slice(path.lastIndexOf('/') + 1),
        given: ['image', 'output'],
        numbers: { control, ...unpackFormat.descriptors },
        lease,
        limits,
        isLabelled,
      }),
    );
    plan = launchPlan(encoded, {
      control: { ours: 'ourControl', announcement: bare(wire.events.jailed), release: bare(wire.commands.run) },
      inHostMounts: true,
    });
    plans.set(key, plan);
  }
  return plan;
}

/** Memory for the largest dictionary that there is, and time for the slowest compression on an emulated machine. */
const limits = [
  ['as', 512 * 1024 * 1024],
  ['cpu', 600],
  ['nofile', 16],
  ['nproc', 64],
  ['fsize', unpackFormat.maxSize],
  ['core', 0],
  ['memlock', 0],
  ['msgqueue', 0],
] as const;

function program(): string {
  try {
    return builtFile('unpack/casemate-unpack');
  } catch (cause) {
    throw new CasemateError('ERR_CASEMATE_NOT_BUILT', 'casemate-unpack, which bzImages need, is not built', {
      step: 'options.kernel',
      remedy:
        'In a checkout: apt-get install zlib1g-dev liblzma-dev libzstd-dev liblz4-dev libbz2-dev, then ' +
        '`npm run build`. Or pass the vmlinux that is in it.',
      cause,
    });
  }
}

const reasons: Readonly<Record<number, string>> = {
  [unpackFormat.statuses.noMemory]: 'to unpack it takes more memory than kernels do',
  [unpackFormat.statuses.notBzImage]: 'it has no header of the boot protocol 2.08 or newer',
  [unpackFormat.statuses.truncated]: 'it is shorter than it says',
  [unpackFormat.statuses.unknown]:
    'its kernel is compressed in a way that Linux does not know (gzip, bzip2, lzma, xz, lzo, lz4 or zstd)',
  [unpackFormat.statuses.damaged]: 'the compressed kernel in it is damaged',
  [unpackFormat.statuses.tooBig]: `the kernel in it is larger than ${unpackFormat.maxSize / 2 ** 20} MiB`,
  [unpackFormat.statuses.notElf]: 'what is in it is no ELF file',
};

function statusError({ code, signal }: ChildEnd): CasemateError {
  const reason = reasons[code ?? -1];
  if (reason !== undefined) return imageError(reason);
  if (signal !== null) return imageError(`casemate-unpack was ended by signal ${signal}`);
  return new CasemateError('ERR_CASEMATE_SYSTEM', 'casemate-unpack could not read the image, or write the kernel', {
    step: 'options.kernel',
    remedy: 'Is there memory left for the kernel?',
  });
}

function imageError(reason: string): CasemateError {
  return new CasemateError('ERR_CASEMATE_GUEST_IMAGE', `The kernel cannot be unpacked: ${reason}`, {
    step: 'options.kernel',
    remedy: 'Pass a bzImage of an x86-64 kernel, as distributions install it, or the vmlinux that is in it.',
  });
}
