import { EventEmitter } from 'node:events';
import { constants } from 'node:os';
import type { Duplex, Readable } from 'node:stream';
import type { ExecOptions, ReadFileOptions, WriteFileOptions } from '../agent/options.js';
import type { GuestProcess } from '../agent/process.js';
import { CasemateError } from '../errors.js';
import { integer } from '../is.js';
import { type ChildEnd, type Launching, type LaunchOutcome, unborn } from '../jail/launcher.js';
import type { NativeChild } from '../jail/native.js';
import { syscallName } from '../jail/syscalls.js';
import { native } from '../native.js';
import type { Denial } from '../selinux/denials.js';
import type { VmLabel } from '../selinux/label.js';
import { GuestAgent } from './agent.js';
import { Console } from './console.js';
import { type Evidence, type EvidenceRequest, readEvidence } from './evidence.js';
import { crashOf, exitOf, type VmExit } from './exit.js';
import type { Timeline } from './timeline.js';
import { type ConnectOptions, Vsock, type VsockServer } from './vsock.js';
import {
  balloonCommand,
  bare,
  decodeEvent,
  type ExitedEvent,
  type GuestMemory,
  type MonitorEvent,
  type MonitorStamps,
  wire,
} from './wire.js';

/** What a {@link Vm} emits. */
export interface VmEvents {
  /** The guest no longer runs, its state is kept. */
  paused: [];
  /** The guest runs again. */
  resumed: [];
  /** Something behind a device failed, a disk's file for example; its guest was told. Once for each operation of each device. */
  'device-error': [error: CasemateError];
  /** The SELinux policy denied it something, or would have where it is permissive; docs/selinux.md. */
  denial: [denial: Denial];
  /** The mode of the host's SELinux changed while the VM has a label. */
  'selinux-mode': [mode: 'enforcing' | 'permissive'];
  /** The VM has ended and nothing of it is left. Last event. */
  exit: [exit: VmExit];
}

/** How many denials a {@link Vm} keeps. */
const maxDenials = 1000;

/** Where a VM is in its life. */
export type VmState = 'starting' | 'running' | 'paused' | 'exited';

/** What a {@link Vm} is made of. @internal */
export interface VmParts {
  readonly id: string;
  readonly launching: Launching;
  /** Slots of our ends of the console, undefined where there is none. */
  readonly console: { readonly output: number; readonly input: number } | undefined;
  readonly startPaused: boolean;
  /** Undefined where its guest has none. */
  readonly agent: { readonly startTimeoutMs: number } | undefined;
  /** Of its devices the options that they come from, in the monitor's order. */
  readonly devices: readonly string[];
  /** Undefined where it has none; else the SELinux label of its sockets, if any. */
  readonly vsock: { readonly label: string | undefined } | undefined;
  readonly memoryMib: number;
  /** Its SELinux label, where it has one. */
  readonly label: VmLabel | undefined;
  /** Its monitor is gone: what was lent to it is ours again. */
  readonly released: () => void;
  /** Hears of the end before all listeners. */
  readonly ended: (exit: VmExit) => void;
  readonly evidence: () => EvidenceRequest;
}

/**
 * A running virtual machine: a guest in KVM, its monitor in a jail. Made by {@link launch}.
 *
 * It keeps Node's event loop alive until it ends. `await using` ends it with its scope.
 */
export class Vm extends EventEmitter<VmEvents> implements AsyncDisposable {
  /** Unique in this process and, with {@link Vm.pid}, on this host. */
  readonly id: string;
  /** Resolves, never rejects, when the VM has ended and its monitor has been reaped. */
  readonly exited: Promise<VmExit>;

  /** The monitor's stamps, once the guest has made its first hypercall; nothing where it ended before. @internal */
  readonly started: Promise<MonitorStamps | undefined>;

  readonly #parts: VmParts;
  readonly #child: NativeChild;
  readonly #resolveExited: (exit: VmExit) => void;
  #state: VmState = 'starting';
  #timeline: (() => Timeline) | undefined;
  #console: Console | undefined;
  readonly #vsock: Vsock | undefined;
  readonly #agent: GuestAgent | undefined;
  /** Why we killed it, where we did. */
  #ending: VmExit | undefined;
  #guestExit: ExitedEvent | undefined;
  #failure: Extract<MonitorEvent, { type: 'failed' }> | undefined;
  #blockedSyscall: string | undefined;
  #violation: string | undefined;
  /** Those that there have been, by device and operation. */
  readonly #deviceErrors = new Set<string>();
  /** Whoever asks while an answer is on its way gets that one. */
  #memory: { readonly answered: Promise<GuestMemory>; readonly answer: (memory: GuestMemory) => void } | undefined;
  #end: ChildEnd = unborn;
  readonly #denials: Denial[] = [];
  #launch: LaunchOutcome | undefined;
  readonly #resolveStarted: (stamps: MonitorStamps | undefined) => void;
  /** Calls of pause() and resume() take their turns. */
  #turn: Promise<void> = Promise.resolve();
  /** What pause() or resume() has asked for and waits for. */
  #asked: { readonly wanted: VmState; readonly answer: () => void } | undefined;

  /** @internal */
  constructor(parts: VmParts) {
    super();
    this.id = parts.id;
    this.#parts = parts;
    this.#child = parts.launching.child;
    let started: (stamps: MonitorStamps | undefined) => void = () => {};
    this.started = new Promise((resolve) => {
      started = resolve;
    });
    this.#resolveStarted = started;
    let exited: (exit: VmExit) => void = () => {};
    this.exited = new Promise((resolve) => {
      exited = resolve;
    });
    this.#resolveExited = exited;
    this.#vsock = parts.vsock && new Vsock(this.#child, parts.vsock.label);
    this.#agent = parts.agent && new GuestAgent(this, parts.agent.startTimeoutMs);
    this.#child.watch(
      (bytes, size) => this.#onMessage(decodeEvent(bytes, size)),
      (code, signal, memoryEvents) => this.#onEnd({ code, signal, memoryEvents }),
    );
    parts.launching.done.then((outcome) => {
      this.#launch = outcome;
      if (this.pid === 0) this.#onEnd(unborn);
    });
  }

  /** The monitor's process id, as Node's pid namespace has it. */
  get pid(): number {
    return this.#child.pid;
  }

  /** Where it is in its life. */
  get state(): VmState {
    return this.#state;
  }

  /** Every step of the launch, to the nanosecond. */
  get timeline(): Timeline {
    if (this.#timeline === undefined) throw this.#closed('The timeline is known once the launch is done');
    return this.#timeline();
  }

  /**
   * The guest's console: what it writes is read here, what is written here it reads; `end()` is its end of file.
   * Backpressure works both ways, so an unread console stops a guest that writes.
   *
   * @throws CasemateError ERR_CASEMATE_STATE for a VM launched with `console: 'ignore'`.
   */
  get console(): Duplex {
    this.#console ??= this.#openConsole();
    return this.#console;
  }

  #openConsole(): Console {
    const { console } = this.#parts;
    if (console === undefined) {
      throw new CasemateError('ERR_CASEMATE_STATE', "This VM was launched with console: 'ignore'", {
        step: 'console',
        remedy: "Launch it with console: 'pipe'.",
      });
    }
    return new Console(this.#child, console);
  }

  /**
   * Connects to a port that a program in the guest listens on, by AF_VSOCK. The stream is half-open as a TCP socket's:
   * `end()` is the end of what the guest reads, and its end is `'end'` here. Backpressure works both ways. Where the guest
   * breaks it off, or the VM ends before the guest has ended the stream, it is destroyed with a {@link StreamError}.
   *
   * @param port - of the guest, 0 to 2^32-2.
   * @throws CasemateError ERR_CASEMATE_CONNECTION_REFUSED where nothing listens, or the guest has no driver yet;
   * ERR_CASEMATE_TOO_MANY_STREAMS; ERR_CASEMATE_CLOSED; ERR_CASEMATE_STATE for a VM without vsock. An AbortError where
   * `signal` is aborted.
   */
  async connect(port: number, options?: ConnectOptions): Promise<Duplex> {
    return this.#streams().connect(port, options);
  }

  /**
   * Takes the guest's connections to this port of its host (CID 2, VMADDR_CID_HOST). There is no path on the host, and
   * nobody but the guest can connect.
   *
   * @throws CasemateError ERR_CASEMATE_STATE where the port has a server already, or the VM has no vsock;
   * ERR_CASEMATE_CLOSED.
   */
  listen(port: number): VsockServer {
    return this.#streams().listen(port);
  }

  #streams(): Vsock {
    if (this.#vsock !== undefined) return this.#vsock;
    throw new CasemateError('ERR_CASEMATE_STATE', 'This VM was launched without vsock', {
      step: 'vsock',
      remedy: 'Launch it with vsock: true.',
    });
  }

  /**
   * Stops the guest, also within a console call. Resolves once every vCPU stands still.
   *
   * @throws CasemateError ERR_CASEMATE_CLOSED where the VM has ended or ends meanwhile.
   */
  pause(): Promise<void> {
    return this.#command(wire.commands.pause, 'paused');
  }

  /**
   * Lets a paused guest go on.
   *
   * @throws CasemateError ERR_CASEMATE_CLOSED where the VM has ended or ends meanwhile.
   */
  resume(): Promise<void> {
    return this.#command(wire.commands.resume, 'running');
  }

  #command(command: number, wanted: VmState): Promise<void> {
    const turn = this.#turn.then(async () => {
      if (this.#state === wanted) return;
      if (this.#state === 'exited') throw this.#closed('The VM has ended');
      const answered = new Promise<boolean>((resolve) => {
        this.#asked = { wanted, answer: () => resolve(true) };
      });
      try {
        this.#child.send(bare(command));
      } catch {
        // It has hung up already: its end is on the way.
      }
      // Not by its state: Node may hear of the answer and of the end in the same moment, and then it was done.
      const isDone = await Promise.race([answered, this.exited.then(() => false)]);
      if (!isDone) throw this.#closed('The VM has ended');
    });
    this.#turn = turn.catch(() => {});
    return turn;
  }

  /**
   * Runs a command in the guest, by the agent of a VM launched with `agent`. It may be called at once: the command waits
   * for the guest to have booted.
   *
   * ```ts
   * const { code, stdout } = await vm.exec(['uname', '-a']);
   * ```
   *
   * @param argv - the program, as a path or to be looked for in its PATH, and its arguments. There is no shell.
   * @throws CasemateError ERR_CASEMATE_INVALID_OPTION; ERR_CASEMATE_STATE for a VM without an agent. All else is told by
   * the process.
   */
  exec(argv: readonly string[], options?: ExecOptions): GuestProcess {
    return this.#guestAgent().exec(argv, options);
  }

  /**
   * The contents of a file of the guest.
   *
   * @param path - absolute.
   * @throws CasemateError ERR_CASEMATE_GUEST_SYSTEM with the guest's errno, ERR_CASEMATE_MAX_BYTES,
   * ERR_CASEMATE_AGENT, ERR_CASEMATE_TIMEOUT, ERR_CASEMATE_CLOSED; ERR_CASEMATE_STATE for a VM without an agent. An
   * AbortError where `signal` is aborted.
   */
  async readFile(path: string, options?: ReadFileOptions): Promise<Buffer> {
    return this.#guestAgent().readFile(path, options);
  }

  /**
   * Writes a file of the guest; one that is there gets new contents. It is not there at once: whoever reads it
   * meanwhile sees a part of it.
   *
   * @param path - absolute; its folder must exist.
   * @throws CasemateError as {@link Vm.readFile}; whatever a stream that is its source fails with.
   */
  async writeFile(path: string, data: string | Uint8Array | Readable, options?: WriteFileOptions): Promise<void> {
    return this.#guestAgent().writeFile(path, data, options);
  }

  /**
   * Ends the guest in order, and resolves as {@link Vm.exited} does: its processes are told to end, its disks have all
   * that was written. Where the guest has an init of its own, its `poweroff` is run.
   *
   * @throws CasemateError ERR_CASEMATE_TIMEOUT where it still runs after `timeoutMs` (default 60000), which is not what
   * ends it; as {@link Vm.readFile}.
   */
  async powerOff(options?: { timeoutMs?: number }): Promise<VmExit> {
    return this.#guestAgent().powerOff(options);
  }

  #guestAgent(): GuestAgent {
    if (this.#agent !== undefined) return this.#agent;
    throw new CasemateError('ERR_CASEMATE_STATE', 'This VM was launched without an agent', {
      step: 'agent',
      remedy: 'Launch it with agent: true.',
    });
  }

  /**
   * Asks the guest to give so much memory back: its driver puts what it can spare into a balloon, and takes it out again
   * where less is asked for. That takes its time, and {@link Vm.memory} says how far it is.
   *
   * @throws CasemateError ERR_CASEMATE_STATE without a balloon, ERR_CASEMATE_CLOSED where the VM has ended.
   */
  balloon({ targetMib }: { targetMib: number }): void {
    const mib = integer('options.targetMib', targetMib, 0, this.#parts.memoryMib);
    this.#sendOfBalloon(balloonCommand((mib * 2 ** 20) / 4096));
  }

  /**
   * What the guest says of its memory, and how large its balloon is.
   *
   * @throws CasemateError ERR_CASEMATE_STATE without a balloon, ERR_CASEMATE_CLOSED where the VM has ended or ends
   * meanwhile.
   */
  async memory(): Promise<GuestMemory> {
    if (this.#memory === undefined) {
      this.#sendOfBalloon(bare(wire.commands.memory));
      let answer: (memory: GuestMemory) => void = () => {};
      const answered = new Promise<GuestMemory>((resolve) => {
        answer = resolve;
      });
      this.#memory = { answered, answer };
    }
    const memory = await Promise.race([this.#memory.answered, this.exited.then(() => undefined)]);
    if (memory === undefined) throw this.#closed('The VM has ended');
    return memory;
  }

  #sendOfBalloon(command: Uint8Array): void {
    if (!this.#parts.devices.includes('options.balloon')) {
      throw new CasemateError('ERR_CASEMATE_STATE', 'This VM was launched without a balloon', {
        step: 'balloon',
        remedy: 'Launch it with balloon: true.',
      });
    }
    if (this.#state === 'exited') throw this.#closed('The VM has ended');
    try {
      this.#child.send(command);
    } catch {
      // It has hung up already: its end is on the way.
    }
  }

  /** Ends the VM at once and resolves when nothing of it is left. Harmless on one that has ended. */
  kill(): Promise<VmExit> {
    this.end({ reason: 'killed' });
    return this.exited;
  }

  /** Ends the VM for a reason of ours. @internal */
  end(reason: VmExit): void {
    if (this.#state === 'exited') return;
    this.#ending ??= reason;
    this.#child.kill(constants.signals.SIGKILL);
  }

  /**
   * The kernel's own view of the monitor, read now and from outside, layer by layer: what was asked for, what is.
   *
   * @throws CasemateError ERR_CASEMATE_CLOSED where the VM has ended.
   */
  async evidence(): Promise<Evidence> {
    const evidence =
      this.#state === 'exited' ? undefined : readEvidence(this.pid, this.#parts.evidence(), this.#vsock?.peers());
    if (evidence === undefined) throw this.#closed('The VM has ended');
    return evidence;
  }

  /**
   * What the SELinux policy has denied the VM so far, at most 1000 of them; where it is permissive, what it
   * would have denied. Empty without a label, and where this process may not hear of denials (docs/selinux.md).
   */
  get denials(): readonly Denial[] {
    return this.#denials;
  }

  /** @internal */
  denied(denial: Denial): void {
    if (this.#denials.length < maxDenials) this.#denials.push(denial);
    this.emit('denial', denial);
  }

  /** {@link Vm.kill}, as the end of an `await using` scope. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.kill();
    this.#console?.destroy();
  }

  /**
   * What the monitor said of a set-up that failed, what was wrong with its messages, how the launch failed before it was
   * let go, how it ended. @internal
   */
  get trouble(): {
    failure: Extract<MonitorEvent, { type: 'failed' }> | undefined;
    violation: string | undefined;
    launch: LaunchOutcome | undefined;
    end: ChildEnd;
  } {
    return { failure: this.#failure, violation: this.#violation, launch: this.#launch, end: this.#end };
  }

  /** The launch is done. @internal */
  launched(timeline: () => Timeline): void {
    this.#timeline = timeline;
  }

  #onMessage(event: MonitorEvent | undefined): void {
    // Out of time, or aborted: what rings now is dying already, and is not to be handed out.
    if (this.#state === 'starting' && this.#ending !== undefined) return;
    // One that could go on and on, within the protocol, would have Node read and do nothing else.
    if ((this.#guestExit ?? this.#failure ?? this.#blockedSyscall) !== undefined) {
      return this.#violate('more after its last word');
    }
    switch (event?.type) {
      case 'doorbell':
        if (this.#state !== 'starting') return this.#violate('a second doorbell');
        this.#state = this.#parts.startPaused ? 'paused' : 'running';
        return this.#resolveStarted(event.stamps);
      case 'paused':
      case 'resumed': {
        const state = event.type === 'paused' ? 'paused' : 'running';
        if (this.#asked?.wanted !== state) return this.#violate(`an unasked '${event.type}'`);
        const { answer } = this.#asked;
        this.#asked = undefined;
        this.#state = state;
        answer();
        return void this.emit(event.type);
      }
      case 'deviceError':
        return this.#onDeviceError(event);
      case 'streamRequested':
      case 'streamConnected':
      case 'streamRefused':
      case 'streamEnded':
      case 'streamClosed': {
        const wrong = this.#vsock === undefined ? 'news of streams that it has not' : this.#vsock.handle(event);
        return wrong === undefined ? undefined : this.#violate(wrong);
      }
      case 'memory': {
        if (this.#memory === undefined) return this.#violate('what nobody has asked of its memory');
        const { answer } = this.#memory;
        this.#memory = undefined;
        return answer(event.memory);
      }
      case 'exited':
        this.#guestExit = event;
        return;
      case 'failed':
        this.#failure = event;
        return;
      case 'blocked':
        this.#blockedSyscall = syscallName(event.syscall);
        return;
      default:
        return this.#violate('a message that is none of the protocol');
    }
  }

  #onDeviceError({ device, operation, errno }: Extract<MonitorEvent, { type: 'deviceError' }>): void {
    const option = this.#parts.devices[device];
    const key = `${device} ${operation}`;
    if (option === undefined || this.#deviceErrors.has(key)) return this.#violate('an error of no device, or again');
    this.#deviceErrors.add(key);
    const cause = native.systemError(errno, operation);
    this.emit(
      'device-error',
      new CasemateError('ERR_CASEMATE_DEVICE', `${option}: ${operation} failed: ${cause.message}`, {
        step: option,
        remedy: 'See to the file or the device behind it; its guest was told that the operation failed.',
        cause,
      }),
    );
  }

  /** A monitor that breaks the protocol is no longer ours. */
  #violate(what: string): void {
    this.#violation ??= what;
    this.end({ reason: 'monitor-crashed', signal: undefined, blockedSyscall: undefined, code: undefined });
  }

  #onEnd(end: ChildEnd): void {
    this.#state = 'exited';
    this.#end = end;
    const exit =
      this.#guestExit !== undefined && this.#violation === undefined
        ? exitOf(this.#guestExit)
        : (this.#ending ?? crashOf(end, this.#blockedSyscall));
    if (this.#parts.console !== undefined) {
      this.#console ??= this.#openConsole();
      this.#console.guestIsGone();
    }
    this.#vsock?.guestIsGone();
    this.#parts.released();
    this.#resolveStarted(undefined);
    this.#resolveExited(exit);
    // Later than what follows from `launch()` and `exited`: who listens as soon as he has the VM hears of its end.
    setImmediate(() => {
      // One that was never let go was no VM.
      if (this.#launch === undefined) this.#parts.ended(exit);
      this.emit('exit', exit);
    });
  }

  #closed(message: string): CasemateError {
    return new CasemateError('ERR_CASEMATE_CLOSED', message, { step: 'vm', remedy: 'Launch another one.' });
  }
}
