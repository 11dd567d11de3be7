/** What a guest is given: memory, a privilege level, arguments, input, time, randomness. */
import { closeSync, mkdtempSync, openSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { guest } from '../helpers/guests.js';
import { requires } from '../helpers/index.js';
import { refused, run } from '../helpers/vm.js';

const test = requires('kvm');

/** The `name value` lines of the guest 'info'. */
function informed(output: string): Record<string, string | undefined> {
  return Object.fromEntries(output.split('\n').map((line) => line.split(' ', 2)));
}

const argumentsIn = (output: string) => [...output.matchAll(/^argument (.*)$/gm)].map(([, argument]) => argument);

test('arguments arrive as they were given', async (t) => {
  const args = ['', 'plain', 'with a space', '', 'häßlich 🦀 \u{10ffff}', '--option=1', '%s\\'];
  const { output } = await run({ guest: guest('info'), name: 'zéro', args });
  t.deepEqual(argumentsIn(output), ['zéro', ...args]);
});

test('64 KiB of arguments arrive whole, and a byte more is refused', async (t) => {
  const args = Array.from({ length: 990 }, (_, i) => `${i}`.padEnd(65, 'x'));
  const rest = 65536 - 'guest\0'.length - args.length * 'x\0'.padStart(66).length;
  const last = 'y'.repeat(rest - 1);
  const { output, exit } = await run({ guest: guest('info'), args: [...args, last] });
  t.deepEqual(argumentsIn(output), ['guest', ...args, last]);
  t.deepEqual(exit, { reason: 'exit', code: 0 });
  const error = await refused(t, { guest: guest('info'), args: [...args, `${last}y`] }, 'ERR_CASEMATE_INVALID_OPTION');
  t.is(error.step, 'options.args');
});

for (const cpl of [0, 3] as const) {
  test(`an ELF guest runs at CPL ${cpl}`, async (t) => {
    const { output, exit } = await run({ guest: guest('info'), cpl });
    t.deepEqual(exit, { reason: 'exit', code: 0 });
    t.is(informed(output).cpl, `${cpl}`);
  });

  test(`a flat guest runs at CPL ${cpl}`, async (t) => {
    const expected = {
      output: `A flat binary at privilege level ${cpl}\n`,
      exit: { reason: 'exit', code: cpl },
    } as const;
    t.deepEqual(await run({ guest: guest('flat', 'bin'), cpl }), expected);
    t.deepEqual(await run({ guest: guest('flat', 'bin'), cpl, format: 'flat' }), expected);
  });
}

// Of memory that no guest touches only page tables exist, on this side and that.
for (const memoryMib of [8, 16, 1024, 4096, 8192, 65536]) {
  test(`a guest of ${memoryMib} MiB has that memory, to its last byte`, async (t) => {
    const { output, exit } = await run({ guest: guest('info'), memoryMib });
    t.deepEqual(exit, { reason: 'exit', code: 0 });
    const told = informed(output);
    t.is(Number(told.memory), memoryMib * 2 ** 20);
    // What would lie in the hole below 4 GiB lies above it.
    const low = Math.min(memoryMib * 2 ** 20, 3 * 2 ** 30);
    t.is(Number(told.heap) + Number(told.heap_size), low);
    t.is(Number(told.high_size), memoryMib * 2 ** 20 - low);
  });
}

test('memory below 8 MiB, above 64 GiB, or of an odd number of MiB is refused', async (t) => {
  for (const memoryMib of [0, 4, 6, 7, 9, 65538, 2 ** 40]) {
    t.is((await refused(t, { memoryMib }, 'ERR_CASEMATE_INVALID_OPTION')).step, 'options.memoryMib');
  }
});

test('seed and random bytes are different for every guest', async (t) => {
  const outputs = await Promise.all([1, 2].map(() => run({ guest: guest('info') })));
  const values = outputs.flatMap(({ output }) => [informed(output).seed, informed(output).random]);
  t.is(new Set(values).size, 4);
  t.true(values.every((value) => /^[0-9a-f]{64}$/.test(value ?? '')));
});

test("a guest's clock counts the nanoseconds since it was entered", async (t) => {
  const before = process.hrtime.bigint();
  const { output } = await run({ guest: guest('clock'), args: ['20'] });
  const passed = process.hrtime.bigint() - before;
  const [first = -1n, second = -1n] = output.trim().split('\n').map(BigInt);
  t.true(first >= 0n && second - first >= 20_000_000n && second <= passed);
});

test('guest and input arrive from memory, from a path and from a descriptor', async (t) => {
  const input = new Uint8Array(Uint32Array.of(5, 1, 4_000_000_000, 7).buffer);
  const summary = 'count 4\nsum 4000000013\nsmallest 1\nlargest 4000000000\n';
  const folder = mkdtempSync(join(tmpdir(), 'casemate-machine-'));
  t.teardown(() => rmSync(folder, { recursive: true }));
  const path = join(folder, 'input');
  writeFileSync(path, input);
  t.is((await run({ guest: guest('sum'), input })).output, summary);
  t.is((await run({ guest: guest('sum'), input: path })).output, summary);
  const descriptors = { guest: { fd: openSync(guest('sum'), 'r') }, input: { fd: openSync(path, 'r') } };
  // They stay the caller's: a second time works.
  for (let i = 0; i < 2; i += 1) t.is((await run(descriptors)).output, summary);
  closeSync(descriptors.guest.fd);
  closeSync(descriptors.input.fd);
});

test("a descriptor is its caller's again as soon as launch() has been called", async (t) => {
  const fd = openSync(guest('exit'), 'r');
  const launched = run({ guest: { fd }, args: ['8'] });
  closeSync(fd);
  // Most likely under the same number: the launcher would find another file there.
  const other = openSync('/dev/null', 'r');
  t.deepEqual((await launched).exit, { reason: 'exit', code: 8 });
  closeSync(other);
});

test('an input that does not fit into the memory is refused', async (t) => {
  const options = { guest: guest('sum'), memoryMib: 8, input: new Uint8Array(2 ** 20) };
  t.regex((await refused(t, options, 'ERR_CASEMATE_GUEST_IMAGE')).message, /do not fit/);
});

test('files that are none, or cannot be opened, are refused', async (t) => {
  for (const source of ['/nonexistent', '/', '/dev/null', { fd: 1_000_000 }]) {
    t.is((await refused(t, { guest: source }, 'ERR_CASEMATE_FILE')).step, 'options.guest');
    const error = await refused(t, { guest: guest('sum'), input: source }, 'ERR_CASEMATE_FILE');
    t.is(error.step, 'options.input');
  }
});
