/**
 * examples/http-vm-per-request with a process in the place of the virtual machine.
 *
 *   node build/bench/peers/server.js COMMAND [ARGUMENT]...
 */
import { spawn } from 'node:child_process';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { pipeline } from 'node:stream/promises';

const [command = '', ...args] = process.argv.slice(2);

const server = createServer(async (_, response) => {
  const child = spawn(command, args, { stdio: ['ignore', 'pipe', 'ignore'] });
  child.on('error', (error) => console.error(error));
  response.setHeader('content-type', 'text/plain; charset=utf-8');
  try {
    await pipeline(child.stdout, response);
  } catch {
    child.kill();
  }
});

server.listen(Number(process.env.PORT ?? 8080), '127.0.0.1', () => {
  console.log(`http://127.0.0.1:${(server.address() as AddressInfo).port}/`);
});
