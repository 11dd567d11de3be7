/** Pairs of categories: who has one is alone with it. None of this needs SELinux. */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import test, { type ExecutionContext } from 'ava';
import { isLeased, type Lease, leaseGiven, leasePair, sparePair } from '#lib/selinux/leases.js';
import { root } from '../helpers/index.js';

const refused = { code: 'ERR_CASEMATE_SELINUX' };
const upTo = (count: number) => Array.from({ length: count }, (_, category) => category);

function leasesFile(t: ExecutionContext): string {
  const folder = mkdtempSync(join(tmpdir(), 'casemate-leases-'));
  t.teardown(() => rmSync(folder, { recursive: true }));
  const path = join(folder, 'categories');
  writeFileSync(path, '');
  return path;
}

const named = ({ pair }: Lease) => pair.join(',');

test('every pair of a range is given out once, and when all are there is an error that says so', (t) => {
  const path = leasesFile(t);
  const leases = Array.from({ length: 45 }, () => leasePair(upTo(10), path));
  t.is(new Set(leases.map(named)).size, 45);
  t.true(leases.every(({ pair: [low, high] }) => low < high && high < 10));
  const error = t.throws(() => leasePair(upTo(10), path), refused);
  t.regex(error?.message ?? '', /in use/);
  const freed = leases[17] as Lease;
  freed.file.close();
  t.is(named(leasePair(upTo(10), path)), named(freed));
});

test('a range may have gaps, and of two categories there is one pair', (t) => {
  const path = leasesFile(t);
  t.deepEqual(leasePair([3, 1000], path).pair, [3, 1000]);
  t.throws(() => leasePair([3, 1000], path), refused);
});

test('a pair that was given back is used again, but not while somebody else has it, nor outside of a range', (t) => {
  const path = leasesFile(t);
  const first = leasePair(upTo(1024), path);
  first.file.close();
  sparePair(first.pair);
  const again = leasePair(upTo(1024), path);
  t.deepEqual(again.pair, first.pair);
  sparePair(again.pair);
  t.notDeepEqual(leasePair(upTo(1024), path).pair, first.pair);
  sparePair([3, 1000]);
  t.deepEqual(leasePair([4, 5], path).pair, [4, 5]);
  t.deepEqual(leasePair(upTo(1024), path).pair, [3, 1000]);
});

test('a pair that was asked for is shared with who asks for it, and given to nobody', (t) => {
  const path = leasesFile(t);
  const [one, two] = [leaseGiven([0, 1], path), leaseGiven([0, 1], path)];
  t.throws(() => leasePair([0, 1], path), refused);
  one.file.close();
  t.true(isLeased([0, 1], path));
  two.file.close();
  t.false(isLeased([0, 1], path));
  const own = leasePair([0, 1], path);
  t.throws(() => leaseGiven([0, 1], path), refused);
  own.file.close();
});

/** In another process: leases pairs of 45 and gives them back, and makes a file of each that it has, which may not be there. */
const racer = `
  import { closeSync, openSync, rmSync } from 'node:fs';
  const { leasePair } = await import(process.argv[1]);
  const [path, rounds] = process.argv.slice(2);
  const categories = Array.from({ length: 10 }, (_, i) => i);
  const held = [];
  let twice = 0;
  const drop = ({ file, mark }) => { rmSync(mark); file.close(); };
  for (let i = 0; i < Number(rounds); i += 1) {
    const lease = leasePair(categories, path);
    const mark = path + '.' + lease.pair.join(',');
    try { closeSync(openSync(mark, 'wx')); held.push({ file: lease.file, mark }); } catch { twice += 1; lease.file.close(); }
    if (held.length > 4) drop(held.splice(Math.floor(Math.random() * held.length), 1)[0]);
    if (i % 10 === 0) await new Promise((resolve) => setImmediate(resolve));
  }
  for (const one of held) drop(one);
  console.log(JSON.stringify({ twice }));
`;

function inAnotherProcess(t: ExecutionContext, script: string, ...args: string[]): ChildProcess {
  const library = join(root, 'lib/selinux/leases.js');
  const child = spawn(process.execPath, ['--input-type=module', '--eval', script, library, ...args], {
    cwd: root,
    stdio: ['pipe', 'pipe', 'inherit'],
  });
  t.teardown(() => child.kill('SIGKILL'));
  return child;
}

const line = async (child: ChildProcess): Promise<string> => {
  const [text] = await once(createInterface({ input: child.stdout as NodeJS.ReadableStream }), 'line');
  return text as string;
};

test('8 processes that race for 1000 leases never have a pair twice at a time', async (t) => {
  const path = leasesFile(t);
  const told = await Promise.all(Array.from({ length: 8 }, () => line(inAnotherProcess(t, racer, path, '125'))));
  t.deepEqual(
    told.map((text) => JSON.parse(text)),
    Array(8).fill({ twice: 0 }),
  );
});

test('a pair is free again when its process was killed', async (t) => {
  const path = leasesFile(t);
  const holder = `
    const { leasePair } = await import(process.argv[1]);
    globalThis.kept = leasePair([4, 5], process.argv[2]);
    console.log('leased');
    setInterval(() => globalThis.kept, 1000);
  `;
  const child = inAnotherProcess(t, holder, path);
  t.is(await line(child), 'leased');
  t.true(isLeased([4, 5], path));
  child.kill('SIGKILL');
  await once(child, 'close');
  t.deepEqual(leasePair([4, 5], path).pair, [4, 5]);
});

test('where the file of leases cannot be had that is an error with a remedy', (t) => {
  const error = t.throws(() => leasePair([0, 1], '/nonexistent/categories'), refused);
  t.regex((error as { remedy?: string }).remedy ?? '', /casemate selinux install/);
});
