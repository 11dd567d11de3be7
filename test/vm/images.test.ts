/** Guest images that are cut short, or lie: each refused by the monitor for its reason, from within its jail. */
import { readFileSync } from 'node:fs';
import { flat, guest } from '../helpers/guests.js';
import { requires } from '../helpers/index.js';
import { refused, run } from '../helpers/vm.js';

const test = requires('kvm');

/** A guest that is as good as they come; elf(5) has the offsets below. */
const valid = readFileSync(guest('exit'));
const programHeader = Number(valid.readBigUInt64LE(32));

function mutated(change: (image: Buffer) => unknown): Buffer {
  const image = Buffer.from(valid);
  change(image);
  return image;
}

const lies: readonly (readonly [title: string, why: RegExp, change: (image: Buffer) => unknown])[] = [
  ['says that it is of 32 bits', /64-bit/, (image) => image.writeUInt8(1, 4)],
  ['says that it is big-endian', /little-endian/, (image) => image.writeUInt8(2, 5)],
  ['is for arm64', /x86-64/, (image) => image.writeUInt16LE(183, 18)],
  ['is of a later ELF version', /headers/, (image) => image.writeUInt32LE(2, 20)],
  ['is position-independent', /static/, (image) => image.writeUInt16LE(3, 16)],
  ['wants an interpreter', /static/, (image) => image.writeUInt32LE(3, programHeader)],
  ['wants a dynamic linker', /static/, (image) => image.writeUInt32LE(2, programHeader)],
  ['has nothing but a note', /empty/, (image) => image.writeUInt32LE(4, programHeader) && image.writeUInt16LE(1, 56)],
  ['has no program headers', /empty/, (image) => image.writeUInt16LE(0, 56)],
  ['has 65535 program headers', /headers/, (image) => image.writeUInt16LE(0xffff, 56)],
  ['has program headers of another size', /headers/, (image) => image.writeUInt16LE(57, 54)],
  ['has its program headers behind its end', /shorter/, (image) => image.writeBigUInt64LE(1n << 40n, 32)],
  [
    'has its program headers at the end of numbers',
    /headers/,
    (image) => image.writeBigUInt64LE(-8n & 0xffff_ffff_ffff_ffffn, 32),
  ],
  ['has its program headers within its header', /headers/, (image) => image.writeBigUInt64LE(8n, 32)],
  ['has a segment behind its end', /shorter/, (image) => image.writeBigUInt64LE(1n << 40n, programHeader + 8)],
  [
    'has a segment whose end wraps around',
    /segment/,
    (image) => image.writeBigUInt64LE(0xffff_ffff_ffff_fff0n, programHeader + 8),
  ],
  [
    'has more of a segment in the file than in memory',
    /segment/,
    (image) => image.writeBigUInt64LE(1n, programHeader + 40),
  ],
  ['has a segment below 2 MiB', /below 2 MiB/, (image) => image.writeBigUInt64LE(0x1000n, programHeader + 16)],
  [
    'has a segment behind the end of memory',
    /outside the memory/,
    (image) => image.writeBigUInt64LE(1n << 32n, programHeader + 16),
  ],
  [
    'has a segment larger than memory',
    /outside the memory/,
    (image) => image.writeBigUInt64LE(1n << 40n, programHeader + 40),
  ],
  [
    'has a segment whose address wraps around',
    /segment/,
    (image) => image.writeBigUInt64LE(0xffff_ffff_ffff_fff0n, programHeader + 16),
  ],
  ['has segments that overlap', /overlaps/, (image) => image.writeBigUInt64LE(0x20_0000n, programHeader + 56 + 16)],
  ['is entered outside of its code', /entry point/, (image) => image.writeBigUInt64LE(0x10_0000n, 24)],
  ['is entered in a segment that is no code', /entry point/, (image) => image.writeUInt32LE(6, programHeader + 4)],
];

for (const [title, why, change] of lies) {
  test(`an ELF image that ${title} is refused`, async (t) => {
    const error = await refused(t, { guest: mutated(change) }, 'ERR_CASEMATE_GUEST_IMAGE');
    t.is(error.step, 'options.guest');
    t.regex(error.message, why);
  });
}

test('an ELF image cut short at any place is refused', async (t) => {
  // Behind the first of its segments there is nothing in the file: the other one is zeros.
  const end = Number(valid.readBigUInt64LE(programHeader + 8) + valid.readBigUInt64LE(programHeader + 32));
  for (const size of [4, 5, 16, 63, 64, programHeader + 55, programHeader + 56, end - 1]) {
    const error = await refused(t, { guest: valid.subarray(0, size) }, 'ERR_CASEMATE_GUEST_IMAGE');
    t.regex(error.message, /shorter than its headers/, `${size} bytes`);
  }
  const { exit } = await run({ guest: valid.subarray(0, end), args: ['5'] });
  t.deepEqual(exit, { reason: 'exit', code: 5 });
});

test('what is no ELF image is refused where one was promised', async (t) => {
  const image = Buffer.concat([flat('e7e0 31c0 e7ec'), Buffer.alloc(100)]);
  t.deepEqual((await run({ guest: image })).exit, { reason: 'exit', code: 0 });
  const error = await refused(t, { guest: image, format: 'elf' }, 'ERR_CASEMATE_GUEST_IMAGE');
  t.regex(error.message, /64-bit/);
});

test('a flat image larger than memory is refused', async (t) => {
  const error = await refused(t, { guest: new Uint8Array(16 * 2 ** 20), format: 'flat' }, 'ERR_CASEMATE_GUEST_IMAGE');
  t.regex(error.message, /outside the memory/);
});

test('an empty image is refused before anything is created', async (t) => {
  await refused(t, { guest: new Uint8Array() }, 'ERR_CASEMATE_INVALID_OPTION');
});

test('none of the bytes of the headers makes a launch hang, or an image that lies a monitor that crashes', async (t) => {
  const outcomes = new Set<string>();
  for (let at = 4; at < programHeader + 56; at += 7) {
    const image = mutated((bytes) => bytes.writeUInt8(bytes.readUInt8(at) ^ 0xff, at));
    const ended = run({ guest: image, args: ['9'], startTimeoutMs: 500 }).then(
      ({ exit }) => exit.reason,
      ({ code }) => code,
    );
    outcomes.add(await ended);
  }
  const allowed = ['exit', 'ERR_CASEMATE_GUEST_IMAGE', 'ERR_CASEMATE_EARLY_EXIT', 'ERR_CASEMATE_TIMEOUT'];
  t.deepEqual(
    [...outcomes].filter((outcome) => !allowed.includes(outcome)),
    [],
  );
  t.true(outcomes.has('ERR_CASEMATE_GUEST_IMAGE'));
});
