import { release } from 'node:os';
import { finished } from 'node:stream/promises';
import { setTimeout as delay } from 'node:timers/promises';
import {
  CasemateError,
  type Evidence,
  type ExecResult,
  type GuestProcess,
  type LaunchOptions,
  launch,
  type Vm,
  type VmExit,
} from '../index.js';
import type { RunOptions } from './args.js';

/** How a command in a Linux guest went. */
export interface CommandRun {
  readonly vm: Vm;
  readonly exit: VmExit;
  readonly evidence: Evidence | undefined;
  /** Of the command; undefined where its guest ended first. Output is empty where it was passed on. */
  readonly result: ExecResult | undefined;
}

/** Signals that are the command's, as those of a shell's child are. */
const forwarded = ['SIGINT', 'SIGTERM', 'SIGHUP', 'SIGQUIT', 'SIGUSR1', 'SIGUSR2'] as const;

/** Runs a command in a guest of its own, connected with this process's streams, and ends that guest. */
export async function runCommand(options: RunOptions, launchOptions: LaunchOptions): Promise<CommandRun> {
  const { command = [], kernel, user } = options;
  const modules = options.modules ?? (kernel === 'auto' ? `/lib/modules/${release()}` : undefined);
  await using vm = await launch({ ...launchOptions, agent: modules === undefined ? true : { modules } });
  const console = lastWords(vm);
  const evidence = options.evidence ? await vm.evidence() : undefined;
  if (options.evidence) await vm.resume();
  const isTerminal = !options.json && process.stdin.isTTY && process.stdout.isTTY;
  const guest = vm.exec(command, {
    stdin: 'pipe',
    ...(user !== undefined && { user: userOf(user) }),
    ...(isTerminal && { tty: terminalSize() }),
    ...(isTerminal && process.env.TERM !== undefined && { env: { TERM: process.env.TERM } }),
  });
  const disconnect = connect(guest, isTerminal);
  try {
    const result = options.json ? await guest : await passOn(guest);
    disconnect();
    const exit = await ended(vm);
    return { vm, exit, evidence, result };
  } catch (error) {
    disconnect();
    // A command may well end its own machine; or it ran out of time.
    const exit = await Promise.race([vm.exited, delay(1000, undefined, { ref: false })]);
    if (exit !== undefined && isAgentGone(error)) return { vm, exit, evidence, result: undefined };
    process.stderr.write(console());
    throw error;
  }
}

const isAgentGone = (error: unknown): boolean =>
  error instanceof CasemateError && (error.code === 'ERR_CASEMATE_AGENT' || error.code === 'ERR_CASEMATE_CLOSED');

function userOf(text: string): string | { uid: number; gid: number } {
  const [, uid, gid = uid] = /^(\d+)(?::(\d+))?$/.exec(text) ?? [];
  return uid === undefined ? text : { uid: Number(uid), gid: Number(gid) };
}

const terminalSize = () => ({ columns: process.stdout.columns, rows: process.stdout.rows });

/** What the guest printed last: worth seeing only where something went wrong. */
function lastWords(vm: Vm): () => string {
  let text = '';
  vm.console.setEncoding('utf8').on('data', (chunk: string) => {
    text = (text + chunk).slice(-8192);
  });
  return () => text;
}

/** This process's input, signals and window become the command's; what is returned takes them back. */
function connect(guest: GuestProcess, isTerminal: boolean): () => void {
  const { stdin, stdout } = process;
  stdin.on('error', () => guest.stdin.end());
  stdin.pipe(guest.stdin);
  const resize = () => guest.resize(stdout.columns, stdout.rows);
  const forward = (signal: NodeJS.Signals) => guest.kill(signal);
  guest.started.then(() => {
    // Until now they ended the VM. From now on it is for the command to say what they mean.
    for (const signal of forwarded) process.removeAllListeners(signal).on(signal, forward);
    if (!isTerminal) return;
    stdin.setRawMode(true); // its terminal is the guest's: Ctrl-C and all are characters here
    stdout.on('resize', resize);
  }, ignored);
  return () => {
    for (const signal of forwarded) process.off(signal, forward);
    if (isTerminal) {
      stdin.setRawMode(false);
      stdout.off('resize', resize);
    }
    stdin.destroy(); // else a terminal's or pipe's open end keeps this process waiting
  };
}

const ignored = () => undefined;

/** Both its streams are this process's. */
async function passOn(guest: GuestProcess): Promise<ExecResult> {
  guest.stdout.pipe(process.stdout, { end: false });
  guest.stderr.pipe(process.stderr, { end: false });
  const read = Promise.all([finished(guest.stdout), finished(guest.stderr)]);
  read.catch(ignored); // `exited` says why
  const exit = await guest.exited;
  await read;
  return { ...exit, stdout: Buffer.alloc(0), stderr: Buffer.alloc(0) };
}

/** The guest powers off, so that its disks have all that was written; one that cannot is killed. */
async function ended(vm: Vm): Promise<VmExit> {
  return vm.powerOff({ timeoutMs: 10_000 }).catch(() => vm.kill());
}
