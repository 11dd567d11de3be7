/**
 * Hardware-isolated virtual machines: each KVM monitor in namespaces, a root and an SELinux context of its own.
 *
 * @packageDocumentation
 */
export type { ExecOptions, ReadFileOptions, RequestOptions, WriteFileOptions } from './agent/options.js';
export type { ExecResult, GuestExit, GuestProcess } from './agent/process.js';
export type { TerminalSize } from './agent/protocol.js';
export { CasemateError, type ErrorCode, type SystemErrorCause } from './errors.js';
export type { TimelineStep } from './jail/launcher.js';
export type { JailOptions, LayerName, LayerState } from './jail/profiles.js';
export type { TapRoute } from './jail/steps.js';
export type { ExitMessage, LaunchMessage } from './vm/channels.js';
export type { BalloonOptions, DiskOptions } from './vm/devices.js';
export type { Evidence, EvidenceLayer } from './vm/evidence.js';
export { describeExit, type VmExit } from './vm/exit.js';
export type { FileSource } from './vm/files.js';
export { launch, warmUp } from './vm/launch.js';
export type { IoLimit, Limits } from './vm/limits.js';
export type { NetworkOptions, TapOptions } from './vm/network.js';
export type { AgentOptions, LaunchOptions } from './vm/options.js';
export type { RateLimit } from './vm/rate-limit.js';
export type { Timeline } from './vm/timeline.js';
export { Vm, type VmEvents, type VmState } from './vm/vm.js';
export {
  type ConnectOptions,
  type StreamBreak,
  type StreamError,
  VsockServer,
  type VsockServerEvents,
} from './vm/vsock.js';
export type { GuestMemory, GuestRegisters, MemoryStatistics } from './vm/wire.js';
