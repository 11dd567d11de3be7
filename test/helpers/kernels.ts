/** Kernels of a few instructions, as the 64-bit boot protocol starts them: a zero page in RSI, no stack to speak of. */

const base = 0x100_0000n;
const headersSize = 64 + 56;

/** A vmlinux of instructions in hexadecimal, at 16 MiB; elf(5) has the layout. */
export function kernel(...instructions: string[]): Buffer {
  const code = Buffer.from(instructions.join('').replaceAll(' ', ''), 'hex');
  const image = Buffer.alloc(headersSize + code.length);
  image.write('\x7fELF\x02\x01\x01', 'latin1');
  image.writeUInt16LE(2, 16); // ET_EXEC
  image.writeUInt16LE(62, 18); // EM_X86_64
  image.writeUInt32LE(1, 20);
  image.writeBigUInt64LE(base, 24); // entry
  image.writeBigUInt64LE(64n, 32); // program headers
  image.writeUInt16LE(64, 52);
  image.writeUInt16LE(56, 54);
  image.writeUInt16LE(1, 56);
  image.writeUInt32LE(1, 64); // PT_LOAD
  image.writeUInt32LE(5, 68); // PF_R | PF_X
  image.writeBigUInt64LE(BigInt(headersSize), 72);
  image.writeBigUInt64LE(base, 80);
  image.writeBigUInt64LE(base, 88);
  image.writeBigUInt64LE(BigInt(code.length), 96);
  image.writeBigUInt64LE(BigInt(code.length), 104);
  code.copy(image, headersSize);
  return image;
}

/** mov $port, %edx; mov $value, %al; out %al, (%dx) */
export function out(port: number, value: number): string {
  const bytes = Buffer.from([0xba, 0, 0, 0, 0, 0xb0, value, 0xee]);
  bytes.writeUInt32LE(port, 1);
  return bytes.toString('hex');
}

const serial = 0x3f8;

export const print = (text: string): string => [...Buffer.from(text)].map((byte) => out(serial, byte)).join('');

/** ACPI's S5. */
export const powerOff = out(0x600, 0x20 | (5 << 2));

/** jmp to itself */
export const loop = 'ebfe';

/** ud2, with no handler for it, nor for what follows from that. */
export const tripleFault = '0f0b';

/** mov offset(%rsi), %esi: what the zero page has of the command line (0x228) or the initrd (0x218). */
export const follow = (offset: number): string =>
  `8bb6${Buffer.from([offset & 0xff, offset >> 8, 0, 0]).toString('hex')}`;

/** mov $serial, %edx; again: lodsb; out %al, (%dx); test %al, %al; jnz again: prints up to and with a NUL. */
export const printString = 'baf8030000 ac ee 84c0 75fa';

/**
 * again: mov $serial + 5, %edx; in (%dx), %al; test $1, %al; jz again; sub $5, %edx; in (%dx), %al; out %al, (%dx);
 * cmp $'.', %al; jne again: sends back what it reads, up to and with a full stop.
 */
export const echo = 'bafd030000 ec a801 74f6 83ea05 ec ee 3c2e 75ed';

/** mov $port, %edx; in (%dx), %al; mov $serial, %edx; out %al, (%dx): prints what a port reads as. */
export const printPort = (port: number): string =>
  `ba${Buffer.from([port & 0xff, port >> 8, 0, 0]).toString('hex')} ec baf8030000 ee`;
