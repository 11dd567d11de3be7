/** An embedder's view: a web server that answers each request from something fresh, under load. */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import type { Readable } from 'node:stream';
import autocannon from 'autocannon';
import type { Measured } from '../results.js';
import { built, lacks, root, type Subject } from '../subject.js';
import { bubblewrap } from './peers.js';

interface Server {
  readonly name: string;
  readonly title: string;
  readonly command: readonly string[];
  missing(): string | undefined;
}

const servers: readonly Server[] = [
  {
    name: 'http-vm',
    title: 'a VM for each request',
    command: [join(root, 'examples/http-vm-per-request/server.mjs')],
    missing: () => undefined,
  },
  {
    name: 'http-spawn',
    title: 'child_process.spawn for each request',
    command: [built('peers/server.js'), built('answer')],
    missing: () => lacks('cc'),
  },
  {
    name: 'http-bubblewrap',
    title: 'bubblewrap for each request',
    command: [built('peers/server.js'), ...bubblewrap(built('answer'))],
    missing: () => lacks('bwrap', 'cc'),
  },
];

/** Sends requests to a fresh server on 127.0.0.1 and ends it. */
async function load(command: readonly string[], connections: number, amount: number): Promise<Measured> {
  const server = spawn(process.execPath, command, {
    stdio: ['ignore', 'pipe', 'inherit'],
    env: { ...process.env, PORT: '0' },
  });
  try {
    const url = await address(server);
    await shoot(url, connections, Math.min(amount, 50));
    const { latency, errors, seconds } = await shoot(url, connections, amount);
    return {
      values: { latency, errors: [errors], perSecond: [latency.length / seconds], rss: [residentMemory(server)] },
    };
  } finally {
    server.kill();
    await once(server, 'exit');
  }
}

/** The first line that a server prints. */
async function address(server: ChildProcess): Promise<string> {
  for await (const line of createInterface({ input: server.stdout as Readable })) return line;
  throw new Error('The server ended before it listened');
}

async function shoot(url: string, connections: number, amount: number) {
  const latency: number[] = [];
  const begun = process.hrtime.bigint();
  let last = begun; // autocannon itself only looks every second whether it is done
  const { errors, timeouts, non2xx } = await new Promise<autocannon.Result>((resolve, reject) => {
    const run = autocannon({ url, connections, amount, timeout: 10 }, (error, result) =>
      error ? reject(error) : resolve(result),
    );
    run.on('response', (_client, _status, _bytes, milliseconds) => {
      latency.push(Math.round(milliseconds * 1e6));
      last = process.hrtime.bigint();
    });
  });
  return { latency, errors: errors + timeouts + non2xx, seconds: Number(last - begun) / 1e9 };
}

function residentMemory(server: ChildProcess): number {
  const status = readFileSync(`/proc/${server.pid}/status`, 'utf8');
  return Number(/^VmRSS:\s+(\d+) kB/m.exec(status)?.[1]) * 1024;
}

export const httpSubjects: readonly Subject[] = [
  ...servers.flatMap(({ name, title, command, missing }) =>
    [1, 10, 50].map(
      (connections): Subject => ({
        name: `${name}-${connections}`,
        title: `${title}, ${connections} ${connections === 1 ? 'connection' : 'connections'}`,
        family: 'http',
        every: 4,
        long: connections !== 10,
        missing,
        trial: ({ smoke }) => load(command, connections, smoke ? connections : 400),
      }),
    ),
  ),
  {
    name: 'http-vm-long',
    title: 'a VM for each request, 10 connections, 10,000 requests',
    family: 'http',
    every: Number.POSITIVE_INFINITY,
    long: true,
    missing: () => undefined,
    trial: () => load((servers[0] as Server).command, 10, 10_000),
  },
];
