import { isUtf8 } from 'node:buffer';
import { constants } from 'node:os';
import { CasemateError } from '../errors.js';
import type { Evidence, ExecResult, Timeline, VmExit } from '../index.js';
import { columns } from './format.js';

// The numbers of timeout(1) and docker for the same things.
const TIMED_OUT = 124;
const FAILED = 125;
const NOT_RUN = 126;
const NOT_FOUND = 127;
const CRASHED = 134; // as a program that aborted itself
const KILLED = 137;
const REBOOTED = 1;

/** The exit code of `casemate run` for the end of its VM. */
export function exitCodeOf(exit: VmExit): number {
  switch (exit.reason) {
    case 'exit':
      return Math.min(exit.code, 255);
    case 'poweroff':
      return 0;
    case 'reboot':
      return REBOOTED;
    case 'timeout':
      return TIMED_OUT;
    case 'killed':
    case 'out-of-memory':
      return KILLED;
    case 'fault':
    case 'shutdown':
    case 'panic':
    case 'internal-error':
    case 'protocol':
      return CRASHED;
    case 'host-error':
    case 'monitor-crashed':
      return FAILED;
  }
}

/** The exit code of `casemate run` for a command in a guest: the command's own, or what a shell has for its signal. */
export function exitCodeOfCommand({ code, signal }: ExecResult): number {
  return signal === null ? (code as number) : 128 + (constants.signals[signal] ?? 0);
}

/** The exit code of casemate where there is no VM to have ended. */
export function exitCodeOfError(error: unknown): number {
  if (!(error instanceof CasemateError)) return FAILED;
  if (error.code === 'ERR_CASEMATE_TIMEOUT') return TIMED_OUT;
  if (error.code === 'ERR_CASEMATE_GUEST_SYSTEM') return error.errno === -constants.errno.ENOENT ? NOT_FOUND : NOT_RUN;
  // The guest did run, if only up to its first hypercall.
  return error.code === 'ERR_CASEMATE_EARLY_EXIT' ? exitCodeOf(error.cause as VmExit) : FAILED;
}

/** One step of a launch, in microseconds since launch() was called. */
interface Row {
  readonly name: string;
  readonly where: string;
  readonly startUs: number;
  readonly durationUs: number;
}

function rowsOf({ t0, steps }: Timeline): Row[] {
  return steps.map(({ name, where, at, durationNs }) => ({
    name,
    where,
    startUs: microseconds(at - t0) - durationNs / 1000,
    durationUs: durationNs / 1000,
  }));
}

function microseconds(nanoseconds: bigint): number {
  return Number(nanoseconds) / 1000;
}

const BAR_WIDTH = 40;

/** The steps of a launch as a table with a bar for each: where it stands and how long it is in the whole launch. */
export function renderTimeline(timeline: Timeline): string {
  const rows = rowsOf(timeline);
  const total = Math.max(microseconds(timeline.t2 - timeline.t0), ...rows.map((row) => row.startUs + row.durationUs));
  const table = columns(
    [
      ['step', 'where', 'at µs', 'took µs', ''],
      ...rows.map((row) => [row.name, row.where, row.startUs.toFixed(0), row.durationUs.toFixed(0), bar(row, total)]),
    ],
    [2, 3],
  );
  const guest = `${microseconds(timeline.t1 - timeline.t0).toFixed(0)} µs`;
  const resolved = `${microseconds(timeline.t2 - timeline.t0).toFixed(0)} µs`;
  return `${table.join('\n')}
From the call of launch() to the guest's first call to its machine: ${guest}; to its return: ${resolved}.
A process's first launch loads the addon and makes the namespaces that later ones find ready.
`;
}

function bar({ startUs, durationUs }: Row, totalUs: number): string {
  const scale = BAR_WIDTH / totalUs;
  const start = Math.min(Math.floor(startUs * scale), BAR_WIDTH - 1);
  const length = Math.round(durationUs * scale);
  return ' '.repeat(Math.max(start, 0)) + (length === 0 ? '▏' : '█'.repeat(length));
}

/** The layers of a jail as a table: asked for, and what the kernel says. */
export function renderEvidence({ layers }: Evidence): string {
  const table = columns([
    ['  layer', 'asked for', 'observed'],
    ...layers.map(({ layer, asked, observed, ok }) => [`${ok ? '✓' : '✗'} ${layer}`, asked, observed]),
  ]);
  return `${table.join('\n')}\n`;
}

/** What `casemate run --json` prints of a VM that ran. */
export function resultToJson(result: {
  readonly id: string;
  readonly exit: VmExit;
  /** All that the guest printed. */
  readonly printed: Buffer;
  readonly timeline: Timeline | undefined;
  readonly evidence: Evidence | undefined;
  readonly command: ExecResult | undefined;
}): string {
  const { id, exit, printed, timeline, evidence, command } = result;
  return toJson({
    id,
    exitCode: command === undefined ? exitCodeOf(exit) : exitCodeOfCommand(command),
    exit,
    ...(command === undefined
      ? asText('console', printed)
      : {
          code: command.code,
          signal: command.signal,
          ...asText('stdout', command.stdout),
          ...asText('stderr', command.stderr),
        }),
    ...(timeline && {
      timeline: {
        doorbellUs: microseconds(timeline.t1 - timeline.t0),
        launchUs: microseconds(timeline.t2 - timeline.t0),
        steps: rowsOf(timeline),
      },
    }),
    ...(evidence && { evidence }),
  });
}

/** Bytes as text, where they are some. */
const asText = (name: string, bytes: Buffer) =>
  isUtf8(bytes) ? { [name]: bytes.toString('utf8') } : { [`${name}Base64`]: bytes.toString('base64') };

/** What `casemate run --json` prints where no VM came to run. */
export function errorToJson(error: unknown): string {
  const { message, code, step, errno, syscall, remedy } = error as Partial<CasemateError>;
  return toJson({ error: { message: message ?? String(error), code, step, errno, syscall, remedy } });
}

/** Registers and addresses are bigints: in hexadecimal, as everybody reads them. */
function toJson(value: unknown): string {
  return JSON.stringify(value, (_, item) => (typeof item === 'bigint' ? `0x${item.toString(16)}` : item));
}
