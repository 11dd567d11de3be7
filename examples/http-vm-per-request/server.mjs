// A web server that answers each request from a virtual machine of its own, in the strict jail.
//
//   node examples/http-vm-per-request/server.mjs      PORT: where it listens, 8080; 0 for any free one
//
// What the guest prints is the body. A guest of yours goes into `guest` (docs/guest-abi.md).
import { createServer } from 'node:http';
import { pipeline } from 'node:stream/promises';
import { launch, warmUp } from 'casemate';

await warmUp(); // the namespaces of the first requests

const server = createServer(async (request, response) => {
  const hungUp = new AbortController();
  response.on('close', () => hungUp.abort()); // who does not wait for the answer needs no VM
  let vm;
  try {
    vm = await launch({ args: [request.url], timeoutMs: 5000, signal: hungUp.signal });
    response.setHeader('content-type', 'text/plain; charset=utf-8');
    await pipeline(vm.console, response);
  } catch (error) {
    if (hungUp.signal.aborted) return;
    console.error(error);
    if (!response.headersSent) response.statusCode = 500;
    response.end();
  } finally {
    await vm?.kill(); // it may have closed its console and run on
  }
});

server.listen(Number(process.env.PORT ?? 8080), '127.0.0.1', () => {
  console.log(`http://127.0.0.1:${server.address().port}/`);
});
