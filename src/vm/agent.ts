import type { Readable } from 'node:stream';
import { Agent } from '../agent/agent.js';
import { agentError } from '../agent/errors.js';
import type { ExecOptions, ReadFileOptions, WriteFileOptions } from '../agent/options.js';
import { Presence } from '../agent/presence.js';
import type { GuestProcess } from '../agent/process.js';
import { agentAbi } from '../agent/protocol.js';
import { CasemateError } from '../errors.js';
import { integer, object } from '../is.js';
import type { VmExit } from './exit.js';
import type { Vm } from './vm.js';

/** The agent of a VM: reached by vsock, once it has said that it is there. */
export class GuestAgent {
  readonly #vm: Vm;
  readonly #presence: Presence;
  readonly #agent: Agent;

  constructor(vm: Vm, startTimeoutMs: number) {
    this.#vm = vm;
    this.#presence = new Presence(startTimeoutMs);
    vm.listen(agentAbi.port).on('connection', (stream) => this.#presence.accept(stream));
    vm.exited.then(() => this.#presence.gone(closed()));
    this.#agent = new Agent(async (signal) => {
      await this.#presence.ready;
      return vm.connect(agentAbi.port, { signal });
    });
  }

  exec(argv: readonly string[], options?: ExecOptions): GuestProcess {
    return this.#agent.exec(argv, options);
  }

  readFile(path: string, options?: ReadFileOptions): Promise<Buffer> {
    return this.#agent.readFile(path, options);
  }

  writeFile(path: string, data: string | Uint8Array | Readable, options?: WriteFileOptions): Promise<void> {
    return this.#agent.writeFile(path, data, options);
  }

  async powerOff(options: { timeoutMs?: number } = {}): Promise<VmExit> {
    const { timeoutMs = 60_000 } = object('options', options, ['timeoutMs']);
    const limit = integer('options.timeoutMs', timeoutMs, 1, 0x7fffffff);
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<never>((_, reject) => {
      timer = setTimeout(() => reject(stillRunning(limit)), limit);
    });
    try {
      return await Promise.race([this.#askToPowerOff(), late]);
    } finally {
      clearTimeout(timer);
    }
  }

  async #askToPowerOff(): Promise<VmExit> {
    if ((await this.#presence.ready) === 'init') {
      await this.#agent.powerOff().catch(unlessGone);
    } else {
      const result = await this.#agent.exec(['poweroff']).then(undefined, unlessGone);
      if (result !== undefined && result.code !== 0) {
        const { code, signal, stderr } = result;
        throw agentError('powerOff', `The guest's poweroff ended with ${code ?? signal}: ${stderr}`);
      }
    }
    return this.#vm.exited;
  }
}

/** The machine may be off before there is an answer. */
function unlessGone(error: unknown): undefined {
  if (!(error instanceof CasemateError && error.code === 'ERR_CASEMATE_AGENT')) throw error;
}

function stillRunning(ms: number): CasemateError {
  return new CasemateError('ERR_CASEMATE_TIMEOUT', `The guest has not powered off within ${ms} ms`, {
    step: 'powerOff',
    remedy: 'Raise options.timeoutMs, or kill() the VM.',
  });
}

function closed(): CasemateError {
  return new CasemateError('ERR_CASEMATE_CLOSED', 'The VM has ended', { step: 'agent', remedy: 'Launch another one.' });
}
