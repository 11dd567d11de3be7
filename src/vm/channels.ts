import { channel, tracingChannel } from 'node:diagnostics_channel';
import type { VmExit } from './exit.js';
import type { ParsedOptions } from './options.js';
import type { Vm } from './vm.js';

/** What the tracing channel `casemate:launch` publishes. */
export interface LaunchMessage {
  /** {@link Vm.id} of the VM to be. */
  id: string;
  /** The checked options. */
  options: ParsedOptions;
  /** In `asyncEnd`. */
  vm?: Vm;
  /** In `error`. */
  error?: unknown;
}

/** What the channel `casemate:exit` publishes. */
export interface ExitMessage {
  id: string;
  vm: Vm;
  exit: VmExit;
}

/**
 * Tracing through node:diagnostics_channel. `tracing:casemate:launch:start`, `:asyncEnd` and `:error` carry a
 * {@link LaunchMessage}; `casemate:exit` carries an {@link ExitMessage}.
 */
export const channels = {
  launch: tracingChannel('casemate:launch'),
  exit: channel('casemate:exit'),
};
