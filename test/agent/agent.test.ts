/** Commands and files by the agent, here on the host. In a guest it is the same program: test/vm/agent.test.ts. */
import { randomBytes } from 'node:crypto';
import { mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { PassThrough, Readable } from 'node:stream';
import test, { type ExecutionContext } from 'ava';
import { CasemateError, type ErrorCode } from 'casemate';
import type { Agent } from '#lib/agent/agent.js';
import { agentAbi } from '#lib/agent/protocol.js';
import { hostAgent } from '../helpers/agent.js';
import { requires } from '../helpers/index.js';
import { isAlive, patiently, within } from '../helpers/proc.js';

const withRoot = requires('root');

async function refused(t: ExecutionContext, call: PromiseLike<unknown>, code: ErrorCode): Promise<CasemateError> {
  return (await t.throwsAsync(async () => await call, { instanceOf: CasemateError, code })) as CasemateError;
}

function folder(t: ExecutionContext): string {
  const path = mkdtempSync(join(tmpdir(), 'casemate-agent-'));
  t.teardown(() => rmSync(path, { recursive: true }));
  return path;
}

/** The next bytes of a stream; what comes behind them stays in it. */
function next(stream: Readable): Promise<Buffer> {
  return new Promise((resolve) => {
    stream.once('data', (chunk: Buffer) => {
      stream.pause();
      resolve(chunk);
    });
    stream.resume(); // after the one before
  });
}

const shell = (agent: Agent, script: string) => agent.exec(['sh', '-c', script]);

test('a command prints on both its streams and ends with its code', async (t) => {
  const { agent } = await hostAgent(t);
  const { code, signal, stdout, stderr } = await shell(agent, 'echo out; echo err >&2; exit 7');
  t.deepEqual(
    { code, signal, stdout: `${stdout}`, stderr: `${stderr}` },
    { code: 7, signal: null, stdout: 'out\n', stderr: 'err\n' },
  );
});

test('a command that a signal ends says by which', async (t) => {
  const { agent } = await hostAgent(t);
  t.like(await shell(agent, 'kill -SEGV $$'), { code: null, signal: 'SIGSEGV' });
});

test('what cannot be started says why, with errno, call and path', async (t) => {
  const { agent } = await hostAgent(t);
  const attempts = [
    [agent.exec(['nothing-of-that-name']), 'ENOENT', 'execve', 'nothing-of-that-name'],
    [agent.exec(['/etc/passwd']), 'EACCES', 'execve', '/etc/passwd'],
    [agent.exec(['true'], { cwd: '/nowhere' }), 'ENOENT', 'chdir', '/nowhere'],
    [agent.exec(['true'], { user: 'nobody-at-all' }), 'ENOENT', 'user', 'nobody-at-all'],
  ] as const;
  for (const [attempt, code, syscall, path] of attempts) {
    const error = await refused(t, attempt, 'ERR_CASEMATE_GUEST_SYSTEM');
    t.like(error, { syscall, step: 'exec' });
    t.like(error.cause, { code, path });
    await refused(t, attempt.started, 'ERR_CASEMATE_GUEST_SYSTEM');
  }
});

test('directory and environment are those that are asked for', async (t) => {
  const { agent } = await hostAgent(t);
  const { stdout } = await agent.exec(['sh', '-c', 'pwd; echo "$A"; echo "$PATH"; echo "$HOME"'], {
    cwd: '/usr',
    env: { A: 'b = c', HOME: '/here' },
  });
  t.deepEqual(`${stdout}`.split('\n').slice(0, 4), [
    '/usr',
    'b = c',
    '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin',
    '/here',
  ]);
});

test('a program is looked for in the PATH that it gets', async (t) => {
  const { agent } = await hostAgent(t);
  const path = folder(t);
  writeFileSync(join(path, 'mine'), '#!/bin/sh\necho found\n', { mode: 0o755 });
  const { stdout } = await agent.exec(['mine'], { env: { PATH: `/nowhere:${path}` } });
  t.is(`${stdout}`, 'found\n');
});

withRoot('a command runs as the user it is given, by name or by ids, with the groups of a name', async (t) => {
  const { agent } = await hostAgent(t);
  const ids = async (user: string | { uid: number; gid: number }) =>
    `${(await agent.exec(['sh', '-c', 'id -u; id -g; id -G; echo $USER; echo $HOME'], { user })).stdout}`.split('\n');
  const [, , uid, gid, , home] =
    /^(nobody):[^:]*:(\d+):(\d+):([^:]*):([^:]*):/m.exec(readFileSync('/etc/passwd', 'utf8')) ?? [];
  const named = await ids('nobody');
  t.deepEqual([named[0], named[1], named[3], named[4]], [uid, gid, 'nobody', home]);
  t.deepEqual((await ids({ uid: 1234567, gid: 7654321 })).slice(0, 5), ['1234567', '7654321', '7654321', '', '/']);
});

test('stdin is nothing, bytes, a stream or written to', async (t) => {
  const { agent } = await hostAgent(t);
  t.is(`${(await agent.exec(['cat'])).stdout}`, '');
  t.is(`${(await agent.exec(['cat'], { stdin: Buffer.from('bytes') })).stdout}`, 'bytes');
  t.is(`${(await agent.exec(['cat'], { stdin: Readable.from(['a', 'stream']) })).stdout}`, 'astream');
  const cat = agent.exec(['cat'], { stdin: 'pipe' });
  cat.stdin.write('line\n');
  const first = await next(cat.stdout);
  t.is(`${first}`, 'line\n');
  cat.stdin.end('last');
  t.is(`${(await cat).stdout}`, 'last');
});

test('megabytes go in and come out as they were', async (t) => {
  const { agent } = await hostAgent(t);
  const bytes = randomBytes(12_345_678);
  const { stdout } = await agent.exec(['cat'], { stdin: bytes, maxBytes: bytes.length });
  t.true(stdout.equals(bytes));
});

test('a process that nobody reads stands still, with a bounded number of bytes on their way', async (t) => {
  const { agent, streams } = await hostAgent(t);
  const yes = agent.exec(['yes']);
  await yes.started;
  const received = () => streams[0]?.bytesRead ?? 0;
  t.true(await within(10_000, () => received() >= agentAbi.window));
  t.is(`${(await agent.exec(['echo', 'meanwhile'])).stdout}`, 'meanwhile\n');
  t.true(received() < agentAbi.window + 65536, `${received()}`);
  yes.kill('SIGTERM'); // is heard nevertheless
  t.like(await yes.exited, { signal: 'SIGTERM' });
});

test('what a process does not read holds up neither signals nor its output', async (t) => {
  const { agent } = await hostAgent(t);
  const sleeper = agent.exec(['sh', '-c', 'echo ready; exec sleep 1000'], { stdin: 'pipe' });
  sleeper.stdin.write(Buffer.alloc(4 * agentAbi.window));
  t.is(`${await next(sleeper.stdout)}`, 'ready\n');
  sleeper.kill('SIGKILL');
  t.like(await sleeper.exited, { signal: 'SIGKILL' });
});

test('input that a process no longer reads is dropped, and its stream ends', async (t) => {
  const { agent } = await hostAgent(t);
  const head = agent.exec(['head', '-c', '3'], { stdin: 'pipe' });
  head.stdin.on('error', (error) => t.fail(error.message));
  const closed = new Promise((resolve) => head.stdin.once('close', resolve));
  head.stdin.write(Buffer.alloc(10_000_000, 'abc'));
  t.is(`${(await head).stdout}`, 'abc');
  await closed;
});

test('a stream that is destroyed tells the process, as a pipe does', async (t) => {
  const { agent } = await hostAgent(t);
  const yes = agent.exec(['yes']);
  await yes.started;
  yes.stdout.destroy();
  t.like(await yes.exited, { signal: 'SIGPIPE' });
});

test('kill reaches what a command has started', async (t) => {
  const { agent } = await hostAgent(t);
  const parent = shell(agent, 'sleep 1000 & echo $!; wait');
  const child = Number(`${await next(parent.stdout)}`);
  t.true(isAlive(child));
  parent.kill('SIGKILL');
  await parent.exited;
  t.true(await within(10_000, () => !isAlive(child)));
});

test('many commands run at once, each with its own streams', async (t) => {
  const { agent } = await hostAgent(t);
  const all = await Promise.all(Array.from({ length: 60 }, (_, i) => shell(agent, `cat; echo ${i}; exit ${i}`)));
  t.deepEqual(
    all.map(({ code, stdout }) => [code, `${stdout}`]),
    all.map((_, i) => [i, `${i}\n`]),
  );
});

test('a terminal has a size, an echo, and takes Ctrl-C and Ctrl-D', async (t) => {
  const { agent } = await hostAgent(t);
  const { stdout } = await agent.exec(['sh', '-c', 'tty >/dev/null && stty size && echo $TERM'], {
    tty: { columns: 132, rows: 43 },
  });
  t.is(`${stdout}`, '43 132\r\nxterm-256color\r\n');

  const cat = agent.exec(['cat'], { tty: true });
  cat.stdin.end('word\n');
  const { code, stdout: echoed } = await cat;
  t.is(code, 0);
  t.is(`${echoed}`, 'word\r\nword\r\n');

  // A program that has answered: a shell that starts another just then swallows the signal, and waits for that one.
  const interrupted = agent.exec(['cat'], { tty: true });
  interrupted.stdin.write('up\n');
  for (let seen = ''; seen !== 'up\r\nup\r\n'; ) seen += await next(interrupted.stdout);
  interrupted.stdin.write('\x03');
  t.like(await interrupted.exited, { signal: 'SIGINT' });
});

test('a terminal that is resized says so', async (t) => {
  const { agent } = await hostAgent(t);
  const process = agent.exec(['sh', '-c', 'trap "stty size; exit 0" WINCH; echo up; while :; do sleep 0.02; done'], {
    tty: true,
  });
  t.is(`${await next(process.stdout)}`, 'up\r\n');
  process.resize(101, 51);
  t.is(`${(await process).stdout}`, '51 101\r\n');
});

test('a command that takes too long is ended, and what it has started', async (t) => {
  const { agent } = await hostAgent(t);
  const { output, pid } = await patiently(
    async (timeoutMs) => {
      const parent = agent.exec(['sh', '-c', 'sleep 1000 & echo $!; wait'], { timeoutMs });
      let output = '';
      parent.stdout
        .on('error', () => {})
        .on('data', (chunk) => {
          output += chunk;
        });
      const pid = await parent.started.catch(() => -1);
      await refused(t, parent, 'ERR_CASEMATE_TIMEOUT');
      await refused(t, parent.exited, 'ERR_CASEMATE_TIMEOUT');
      return { output, pid };
    },
    ({ output }) => output === '',
  );
  t.true(await within(10_000, () => ![pid, Number(output)].some(isAlive)));
});

test('an aborted command is an AbortError, before it begins or later', async (t) => {
  const { agent } = await hostAgent(t);
  const before = agent.exec(['sleep', '1000'], { signal: AbortSignal.abort() });
  await t.throwsAsync(async () => await before, { name: 'AbortError' });
  const controller = new AbortController();
  const later = agent.exec(['sleep', '1000'], { signal: controller.signal });
  const pid = await later.started;
  controller.abort();
  await t.throwsAsync(async () => await later, { name: 'AbortError', code: 'ABORT_ERR' });
  t.true(await within(10_000, () => !isAlive(pid)));
});

test('more output than is asked for ends a command', async (t) => {
  const { agent } = await hostAgent(t);
  const yes = agent.exec(['yes'], { maxBytes: 100_000 });
  const pid = await yes.started;
  await refused(t, yes, 'ERR_CASEMATE_MAX_BYTES');
  t.true(await within(10_000, () => !isAlive(pid)));
});

test('files are read as they are, those of /proc too', async (t) => {
  const { agent } = await hostAgent(t);
  const path = join(folder(t), 'file');
  const bytes = randomBytes(3_000_000);
  writeFileSync(path, bytes);
  t.true((await agent.readFile(path)).equals(bytes));
  t.regex(`${await agent.readFile('/proc/meminfo')}`, /^MemTotal:/);
  writeFileSync(path, '');
  t.is((await agent.readFile(path)).length, 0);
});

test('files are written from strings, bytes and streams, with the mode that is asked for', async (t) => {
  const { agent } = await hostAgent(t);
  const path = join(folder(t), 'file');
  await agent.writeFile(path, 'text');
  t.is(readFileSync(path, 'utf8'), 'text');
  const bytes = randomBytes(3_000_000);
  await agent.writeFile(path, bytes, { mode: 0o4751 });
  t.true(readFileSync(path).equals(bytes));
  t.is(statSync(path).mode & 0o7777, 0o4751);
  await agent.writeFile(path, Readable.from(['a', Buffer.from('b')]));
  t.is(readFileSync(path, 'utf8'), 'ab');
  await agent.writeFile(path, '');
  t.is(readFileSync(path, 'utf8'), '');
});

test('files that cannot be read or written say why', async (t) => {
  const { agent } = await hostAgent(t);
  const attempts = [
    [agent.readFile('/nowhere/file'), 'ENOENT', 'open'],
    [agent.readFile('/'), 'EISDIR', 'read'],
    [agent.writeFile('/nowhere/file', 'x'), 'ENOENT', 'open'],
    [agent.writeFile('/', 'x'), 'EISDIR', 'open'],
    [agent.writeFile('/dev/full', Buffer.alloc(1_000_000)), 'ENOSPC', 'write'],
  ] as const;
  for (const [attempt, code, syscall] of attempts) {
    const error = await refused(t, attempt, 'ERR_CASEMATE_GUEST_SYSTEM');
    t.is(error.syscall, syscall);
    t.is((error.cause as { code: string }).code, code);
  }
  await refused(t, agent.readFile('/dev/zero', { maxBytes: 10_000 }), 'ERR_CASEMATE_MAX_BYTES');
});

test('a file whose source breaks off is an error, with the source as its reason', async (t) => {
  const { agent } = await hostAgent(t);
  const source = new PassThrough();
  source.write('half');
  const written = agent.writeFile(join(folder(t), 'file'), source);
  source.destroy(new Error('torn'));
  await t.throwsAsync(written, { message: 'torn' });
});

test('wrong options are refused before anything is sent', async (t) => {
  const { agent, streams } = await hostAgent(t);
  const exec = (argv: unknown, options?: unknown) => () => void agent.exec(argv as string[], options as object);
  for (const wrong of [
    exec([]),
    exec('ls'),
    exec(['']),
    exec(['a\0b']),
    exec(['ls'], { cwd: 'relative' }),
    exec(['ls'], { env: { 'A=': 'x' } }),
    exec(['ls'], { env: { A: 1 } }),
    exec(['ls'], { env: [] }),
    exec(['ls'], { user: 0 }),
    exec(['ls'], { user: { uid: 0 } }),
    exec(['ls'], { user: { uid: 0, gid: 2 ** 32 - 1 } }),
    exec(['ls'], { tty: { columns: 80 } }),
    exec(['ls'], { tty: { columns: 80, rows: 65536 } }),
    exec(['ls'], { stdin: 'text' }),
    exec(['ls'], { timeoutMs: 0 }),
    exec(['ls'], { signal: {} }),
    exec(['ls'], { shell: true }),
    exec(['ls', 'x'.repeat(300_000)]),
  ]) {
    t.throws(wrong, { instanceOf: CasemateError, code: 'ERR_CASEMATE_INVALID_OPTION' });
  }
  await refused(t, agent.readFile('relative'), 'ERR_CASEMATE_INVALID_OPTION');
  await refused(t, agent.writeFile('/f', 5 as never), 'ERR_CASEMATE_INVALID_OPTION');
  await refused(t, agent.writeFile('/f', '', { mode: 0o10000 }), 'ERR_CASEMATE_INVALID_OPTION');
  t.is(streams.length, 0);
  const sleep = agent.exec(['sleep', '1000']);
  t.throws(() => sleep.kill('SIGNOTHING' as 'SIGTERM'), { code: 'ERR_CASEMATE_INVALID_OPTION' });
  sleep.kill();
  await sleep.exited;
});

test('an agent that dies, or is not there, is an error and no wait', async (t) => {
  const { agent, process } = await hostAgent(t);
  const sleep = agent.exec(['sleep', '1000']);
  const pid = await sleep.started;
  const serving = Number(/^PPid:\s+(\d+)/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1]);
  globalThis.process.kill(serving, 'SIGKILL');
  await refused(t, sleep, 'ERR_CASEMATE_AGENT');
  t.is(`${(await agent.exec(['echo', 'alive'])).stdout}`, 'alive\n');
  globalThis.process.kill(pid, 'SIGKILL');
  process.kill('SIGKILL');
  await new Promise((resolve) => process.once('exit', resolve));
  await t.throwsAsync(async () => await agent.exec(['true']));
});

test('only an agent that is init ends its machine', async (t) => {
  const { agent } = await hostAgent(t);
  t.is((await refused(t, agent.powerOff(), 'ERR_CASEMATE_GUEST_SYSTEM')).syscall, 'reboot');
});

test('requests that leave early, or say nonsense, leave nothing behind', async (t) => {
  const { agent, process, streams } = await hostAgent(t);
  const children = () => readFileSync(`/proc/${process.pid}/task/${process.pid}/children`, 'utf8').trim();
  const some = Array.from({ length: 20 }, () => agent.exec(['sleep', '1000'], { stdin: 'pipe' }));
  await Promise.all(some.map(({ started }) => started));
  // Not at random: of some heads the agent may wait for the rest.
  streams[0]?.write(Buffer.alloc(8, 0xff)); // larger than any frame
  streams[1]?.write(Buffer.from([0xff, 0xff, 0, 0, 0, 0, 0, 0])); // of a type that is none
  for (const stream of streams.slice(2)) stream.destroy();
  for (const one of some) await refused(t, one, 'ERR_CASEMATE_AGENT');
  t.true(await within(10_000, () => children() === ''), children());
});
