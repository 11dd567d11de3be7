/** Kernels of a few instructions, as the 64-bit boot protocol starts them: a zero page in RSI, no stack to speak of. */

const defaultBase = 0x100_0000n;
const headersSize = 64 + 56;

/** A vmlinux of instructions in hexadecimal, at 16 MiB. */
export const kernel = (...instructions: string[]): Buffer => kernelAt(defaultBase, ...instructions);

/** Likewise, elsewhere; elf(5) has the layout. */
export function kernelAt(base: bigint, ...instructions: string[]): Buffer {
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

/** Little-endian, of 32 bits. */
const word = (value: number): string => {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32LE(value >>> 0);
  return bytes.toString('hex');
};

/** mov $register, %ecx; xor %edx, %edx; mov $value, %eax; wrmsr */
export const writeMsr = (register: number, value: number): string => `b9${word(register)} 31d2 b8${word(value)} 0f30`;

/** movb $byte, address, for each byte. */
const store = (address: number, bytes: Buffer): string =>
  [...bytes].map((byte, i) => `c60425${word(address + i)}${byte.toString(16).padStart(2, '0')}`).join('');

/** movl $value, address */
const store32 = (address: number, value: number): string => `c70425${word(address)}${word(value)}`;

/**
 * Page tables of its own: the first GiB, and the large page that `address` lies in, are where they are. A byte written
 * there is read again and printed.
 */
export function tryByte(address: bigint, byte: string): string {
  const [pml4, pdpt, low, high] = [0x30000, 0x31000, 0x32000, 0x33000];
  const gib = Number(address >> 30n);
  const entry = high + 8 * Number((address >> 21n) & 511n);
  const page = address & ~0x1fffffn;
  return [
    store32(pml4, pdpt | 3),
    store32(pdpt, low | 3),
    // mov $low, %edi; mov $0x83, %eax; mov $512, %ecx; again: mov %eax, (%rdi); add $8, %edi; add $0x200000, %eax; loop
    `bf${word(low)} b883000000 b900020000 8907 83c708 0500002000 e2f4`,
    gib === 0 ? '' : store32(pdpt + 8 * gib, high | 3) + store32(entry, Number(page & 0xffffffffn) + 0x83),
    gib === 0 ? '' : store32(entry + 4, Number(page >> 32n)),
    `b8${word(pml4)} 0f22d8`, // mov $pml4, %eax; mov %rax, %cr3
    `48b8${word(Number(address & 0xffffffffn))}${word(Number(address >> 32n))}`, // mov $address, %rax
    `c600${Buffer.from(byte).toString('hex')} 8a00 baf8030000 ee`, // movb $byte, (%rax); mov (%rax), %al; out
  ].join('');
}

/** Where the other processors start, and where they are counted. */
const startPage = 0x8000;
const counter = 0x8800;

/**
 * Starts all other processors, by INIT and a start-up message to everybody else through the x2APIC. Each does `code`, of
 * 16 bits, and is counted; see {@link awaitOthers}.
 */
export const startOthers = (code: string): string =>
  // lock incb counter; then hlt, again and again
  store(startPage, Buffer.from(`${code} f0fe060088 f4ebfd`.replaceAll(' ', ''), 'hex')) +
  writeMsr(0x1b, 0xfee00d00) +
  writeMsr(0x830, 0xc4500) +
  writeMsr(0x830, 0xc4600 | (startPage >> 12));

/** again: pause; cmpb $count, counter; jne again */
export const awaitOthers = (count: number): string =>
  `f390 803c25${word(counter)}${count.toString(16).padStart(2, '0')} 75f4`;

/** mov $serial, %edx; mov $'x', %al; again: out %al, (%dx); jmp again */
export const flood = 'baf8030000 b078 ee ebfd';

/** mov $1, %eax; cpuid; shr $24, %ebx; mov %bl, %al; add $'0', %al; mov $serial, %dx; out %al, (%dx), of 16 bits. */
export const printApicId = '66b801000000 0fa2 66c1eb18 88d8 0430 baf803 ee';

/** mov $port, %edx; in (%dx), %al; mov $serial, %edx; out %al, (%dx): prints what a port reads as. */
export const printPort = (port: number): string =>
  `ba${Buffer.from([port & 0xff, port >> 8, 0, 0]).toString('hex')} ec baf8030000 ee`;

/** mov $register, %ecx; rdmsr */
export const readMsr = (register: number): string => `b9${word(register)} 0f32`;

/**
 * mov $from, %edx; again: xor %eax, %eax; out %al, (%dx); out %ax, (%dx); out %eax, (%dx); in (%dx), %al; in (%dx), %ax;
 * in (%dx), %eax; add $step, %edx; cmp $to, %edx; jb again
 */
export const touchPorts = (from: number, to: number, step: number): string =>
  `ba${word(from)} 31c0 ee 66ef ef ec 66ed ed 81c2${word(step)} 81fa${word(to)} 72e8`;

/**
 * With page tables of its own, of the first GiB and the last one below 4 GiB. mov $from, %esi; again: mov (%rsi), %eax;
 * movl $0, (%rsi); add $step, %esi; jnc again: up to 4 GiB.
 */
export function touchMemory(from: number, step: number): string {
  const [pml4, pdpt, low, high] = [0x30000, 0x31000, 0x32000, 0x33000];
  // mov $table, %edi; mov $page, %eax; mov $512, %ecx; again: mov %eax, (%rdi); add $8, %edi; add $0x200000, %eax; loop
  const fill = (table: number, page: number) =>
    `bf${word(table)} b8${word(page | 0x83)} b900020000 8907 83c708 0500002000 e2f4`;
  return [
    store32(pml4, pdpt | 3),
    store32(pdpt, low | 3),
    store32(pdpt + 3 * 8, high | 3),
    fill(low, 0),
    fill(high, 0xc000_0000),
    `b8${word(pml4)} 0f22d8`, // mov $pml4, %eax; mov %rax, %cr3
    `be${word(from)} 8b06 c70600000000 81c6${word(step)} 73f0`,
  ].join('');
}
