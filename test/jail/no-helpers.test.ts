import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { has, requires } from '../helpers/index.js';
import { tellsOf } from '../helpers/node.js';

const { serial: test } = requires('kvm', 'userns', 'strace');

const launches = 20;

test('a launch is one execve, of the monitor, and nothing else is ever started', async (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'casemate-test-'));
  t.teardown(() => rmSync(folder, { recursive: true }));
  const trace = join(folder, 'trace');
  const script = `
    import { launch } from 'casemate';
    const one = async () => (await launch({ console: 'ignore' })).exited;
    const ends = [];
    for (let i = 0; i < ${launches / 2}; i++) ends.push(await one());
    ends.push(...(await Promise.all(Array.from({ length: ${launches / 2} }, one))));
    tell(ends.filter(({ reason, code }) => reason === 'exit' && code === 0).length);
  `;
  const calls = 'trace=execve,execveat,clone,clone3,fork,vfork';
  const through = ['strace', '-f', '-qq', '-e', calls, '-e', 'signal=none', '-o', trace];
  t.is(await tellsOf<number>(script, { through }), launches);

  // "pid call(arguments) = result", and "pid <... call resumed>) = result" where another process came between.
  const lines = readFileSync(trace, 'utf8').trim().split('\n');
  const started = lines.filter((line) => /^\d+ +execve(at)?\(/.test(line));
  const [node, ...monitors] = started.map((line) => line.replace(/^\d+ +/, ''));
  t.regex(node ?? '', new RegExp(`^execve\\("${process.execPath}"`));
  t.is(monitors.length, launches);
  // Before its execve a child shares Node's memory, which no tracer but root may then read: it sees addresses only.
  const expected = has('root')
    ? /^execve\("\/casemate-vmm", \["casemate-vmm"\], 0x[0-9a-f]+ \/\* 0 vars \*\//
    : /^execve\(0x[0-9a-f]+, 0x[0-9a-f]+, 0x[0-9a-f]+/;
  for (const monitor of monitors) t.regex(monitor, expected);
  t.false(lines.some((line) => /^\d+ +(fork|vfork)\(/.test(line)));
  t.is(new Set(started.map((line) => line.split(' ')[0])).size, launches + 1, 'each in a process of its own');
});
