/**
 * Guests that stay, as flat binaries, so that these tests need no compiler (docs/guest-abi.md has the ports: e0 is the
 * doorbell, e8 read, ec exit).
 */

/**
 * Waits for a byte of input and exits with 0, using no processor. sub rsp, 64; a transfer at rsp: lea rax,
 * [rsp-0x1000]; mov [rsp], rax; 1 byte; no flags; out 0xe0, eax; mov eax, esp; out 0xe8, eax; xor eax, eax;
 * out 0xec, eax
 */
const waitingCode = '4883ec40 488d842400f0ffff 48890424 48c744240801000000 48c744241000000000 e7e0 89e0 e7e8 31c0 e7ec';

/** out 0xe0, eax; jmp to itself */
const spinningCode = 'e7e0 ebfe';

const flat = (code: string): Uint8Array => Buffer.from(code.replaceAll(' ', ''), 'hex');

export const waiting = flat(waitingCode);
export const spinning = flat(spinningCode);

/** The same for the script of another Node. */
export const asScript = (guest: Uint8Array): string => `Buffer.from('${Buffer.from(guest).toString('hex')}', 'hex')`;
