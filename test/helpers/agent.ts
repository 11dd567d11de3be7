/** The guests' agent, on this host and at a Unix socket: all of it but what makes a guest of a machine. */
import { type ChildProcess, spawn } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { connect, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { Agent } from '#lib/agent/agent.js';
import { builtFile } from '#lib/native.js';
import type { ExecutionContext } from './index.js';

/** A stream to a Unix socket; half-open, as those to a guest are. */
function stream(path: string): Promise<Socket> {
  return new Promise((resolve, reject) => {
    const socket = connect({ path, allowHalfOpen: true });
    socket.once('connect', () => resolve(socket)).once('error', reject);
  });
}

export interface HostAgent {
  readonly agent: Agent;
  readonly process: ChildProcess;
  /** All streams to it, as they were made. */
  readonly streams: Socket[];
}

/** Starts one; it ends with its test. */
export async function hostAgent(t: ExecutionContext): Promise<HostAgent> {
  const folder = mkdtempSync(join(tmpdir(), 'casemate-agent-'));
  const path = join(folder, 'socket');
  const streams: Socket[] = [];
  // None of this process's streams: should it outlive us, ava would wait for their ends.
  const child = spawn(builtFile('casemate-agent'), ['--listen', path], { stdio: 'ignore' });
  t.teardown(() => {
    child.kill('SIGKILL');
    for (const stream of streams) stream.destroy(); // of processes whose output was not read to its end
    rmSync(folder, { recursive: true });
  });
  while (
    !(await stream(path).then(
      (socket) => socket.destroy(),
      () => undefined,
    ))
  )
    await delay(5);
  const agent = new Agent(async () => {
    const made = await stream(path);
    streams.push(made);
    return made;
  });
  return { agent, process: child, streams };
}
