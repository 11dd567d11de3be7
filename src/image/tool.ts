import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { Readable, type Writable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { CasemateError } from '../errors.js';

/** What a program is started with, besides its arguments. */
export interface ToolOptions {
  /** The Debian package that has it. */
  readonly package: string;
  readonly cwd?: string;
  readonly input?: AsyncIterable<Uint8Array | string> | Iterable<Uint8Array | string>;
  readonly signal?: AbortSignal | undefined;
}

/**
 * Runs a program that makes images, with the time of everything that it writes fixed, and returns what it said on its
 * standard error.
 *
 * @throws CasemateError ERR_CASEMATE_IMAGE where it is not there or fails; what went wrong with the input, as it is.
 */
export async function runTool(command: string, args: readonly string[], options: ToolOptions): Promise<string> {
  const { cwd, input = [], signal } = options;
  const child = spawn(command, args, {
    cwd,
    signal,
    stdio: ['pipe', 'ignore', 'pipe'],
    env: {
      // They are root's, but no other user's path leads to them.
      PATH: `${process.env.PATH ?? ''}:/usr/sbin:/sbin`,
      LC_ALL: 'C',
      TZ: 'UTC',
      SOURCE_DATE_EPOCH: String(imageTime),
      // The same for e2fsprogs before 1.47.1.
      E2FSPROGS_FAKE_TIME: String(imageTime),
      // Else mke2fs asks what an ext4 is.
      MKE2FS_CONFIG: '/dev/null',
    },
  });
  let said = '';
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    said = (said + text).slice(-maxSaid);
  });
  const ended = once(child, 'close') as Promise<[number | null, NodeJS.Signals | null]>;
  const fed = feed(child.stdin, input);
  // Whoever fails first; the other one is not to be an unhandled rejection.
  fed.catch(() => child.kill());
  let code: number | null;
  try {
    [code] = await ended;
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code !== 'ENOENT') throw cause;
    throw new CasemateError('ERR_CASEMATE_IMAGE', `${command} is not installed`, {
      step: command,
      remedy: `Install it: apt-get install ${options.package}.`,
      cause,
    });
  }
  await fed;
  if (code === 0) return said;
  throw toolError(command, said.trim() || `it ended with ${code ?? 'a signal'}`);
}

/** When everything in an image was changed last, in seconds: 1980-01-01, for zero is what programs take for "now". */
export const imageTime = 315_532_800;

const maxSaid = 64 * 1024;

/** Writes all of it. That the program no longer reads is for its end to explain. */
async function feed(stdin: Writable, input: NonNullable<ToolOptions['input']>): Promise<void> {
  try {
    await pipeline(Readable.from(input), stdin);
  } catch (error) {
    if (!['EPIPE', 'ERR_STREAM_PREMATURE_CLOSE'].includes((error as NodeJS.ErrnoException).code ?? '')) throw error;
  }
}

/** What a program said that failed. */
export function toolError(command: string, said: string): CasemateError {
  return new CasemateError('ERR_CASEMATE_IMAGE', `${command}: ${said}`, {
    step: command,
    remedy: 'Is it of the version that docs/images.md names, is the image big enough, and is there space for it?',
  });
}
