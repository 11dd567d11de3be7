import { basename } from 'node:path';
import type { Duplex, Readable } from 'node:stream';
import { finished } from 'node:stream/promises';
import {
  describeExit,
  type Evidence,
  type ExecResult,
  type LaunchOptions,
  launch,
  type Vm,
  type VmExit,
} from '../index.js';
import type { RunOptions } from './args.js';
import { runCommand } from './command.js';
import { hostKernel } from './host-kernel.js';
import { errorToJson, exitCodeOf, exitCodeOfCommand, renderEvidence, renderTimeline, resultToJson } from './report.js';

/** Exit codes for the ends that are not the guest's own; a shell's where it has one. */
const SIGNALS = { SIGINT: 130, SIGTERM: 143, SIGHUP: 129 } as const;
const OUTPUT_CLOSED = 141;

/** Launches a guest, connects it with this process's streams, and returns the exit code for this process. */
export async function run(options: RunOptions): Promise<number> {
  const stop = new AbortController();
  // The first signal ends the VM and with it this command; a second one finds Node's default, which ends at once.
  for (const [signal, code] of Object.entries(SIGNALS)) process.once(signal, () => stop.abort(code));
  // Whoever read our output is gone (casemate run | head -1).
  process.stdout.on('error', () => stop.abort(OUTPUT_CLOSED));
  try {
    return await runGuest(options, stop.signal);
  } catch (error) {
    if (stop.signal.aborted) return stop.signal.reason;
    if (options.json) process.stdout.write(`${errorToJson(error)}\n`);
    throw error;
  }
}

async function runGuest(options: RunOptions, signal: AbortSignal): Promise<number> {
  if (!options.json && (options.timeline || options.evidence)) heading('The guest says');
  if (options.command !== undefined) {
    const { vm, exit, evidence, result } = await runCommand(options, launchOptions(options, signal));
    if (signal.aborted) return signal.reason;
    report(options, vm, exit, evidence, Buffer.alloc(0), result);
    return result === undefined ? exitCodeOf(exit) : exitCodeOfCommand(result);
  }
  await using vm = await launch(launchOptions(options, signal));
  const output = options.json ? collect(vm.console, signal) : passOn(vm.console, signal);
  passIn(vm.console);
  const evidence = options.evidence ? await vm.evidence() : undefined;
  if (options.evidence) await vm.resume();
  const exit = await vm.exited;
  process.stdin.destroy(); // else a terminal's or pipe's open end keeps this process waiting
  const printed = await output;
  if (signal.aborted) return signal.reason;
  report(options, vm, exit, evidence, printed);
  return exitCodeOf(exit);
}

function launchOptions(options: RunOptions, signal: AbortSignal): LaunchOptions {
  const { guest, kernel, initrd, disks, cmdline, args, memoryMib, vcpus, limits, cpl, input, timeoutMs, network } =
    options;
  return {
    ...(kernel === undefined && { args: [...args] }),
    signal,
    startPaused: options.evidence, // a guest may have ended before anybody has looked at its jail
    ...(guest !== undefined && { guest, name: basename(guest) }),
    ...(kernel !== undefined && { kernel: kernel === 'auto' ? hostKernel() : kernel }),
    ...(initrd !== undefined && { initrd }),
    ...(disks !== undefined && { disks }),
    ...(cmdline !== undefined && { cmdline }),
    ...(memoryMib !== undefined && { memoryMib }),
    ...(vcpus !== undefined && { vcpus }),
    ...(limits !== undefined && { limits }),
    ...(cpl !== undefined && { cpl }),
    ...(input !== undefined && { input }),
    ...(timeoutMs !== undefined && { timeoutMs }),
    ...(network !== undefined && { network }),
  };
}

function passIn(console: Duplex): void {
  // A guest that ends, or never reads, leaves input over: no error of this command.
  console.on('error', () => process.stdin.unpipe(console));
  process.stdin.on('error', () => console.end());
  process.stdin.pipe(console);
}

async function passOn(console: Readable, signal: AbortSignal): Promise<Buffer> {
  console.pipe(process.stdout, { end: false });
  await ended(console, signal);
  return Buffer.alloc(0);
}

async function collect(console: Readable, signal: AbortSignal): Promise<Buffer> {
  const chunks: Buffer[] = [];
  console.on('data', (chunk: Buffer) => chunks.push(chunk));
  await ended(console, signal);
  return Buffer.concat(chunks);
}

/** All output was read, or nobody wants it any more. How the VM ended is told by `exited`, not by its stream. */
async function ended(console: Readable, signal: AbortSignal): Promise<void> {
  await finished(console, { writable: false, signal }).catch(() => undefined);
}

function report(
  options: RunOptions,
  vm: Vm,
  exit: VmExit,
  evidence: Evidence | undefined,
  printed: Buffer,
  command?: ExecResult,
): void {
  if (options.json) {
    const timeline = options.timeline ? vm.timeline : undefined;
    process.stdout.write(`${resultToJson({ id: vm.id, exit, printed, timeline, evidence, command })}\n`);
    return;
  }
  if (options.timeline) {
    heading('The launch');
    process.stderr.write(renderTimeline(vm.timeline));
  }
  if (evidence) {
    heading('The jail, as the kernel shows it from outside');
    process.stderr.write(renderEvidence(evidence));
  }
  const isExpected = exit.reason === 'exit' || exit.reason === 'poweroff' || command !== undefined;
  if (!isExpected) process.stderr.write(`casemate: ${describeExit(exit)}\n`);
}

function heading(text: string): void {
  process.stderr.write(`\n${text}\n${'─'.repeat(text.length)}\n`);
}
