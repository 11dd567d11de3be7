/** Guests of test/guests and examples/guests, and those of a few instructions. */
import { builtFile } from '#lib/native.js';

/** The path of a guest that the build made of test/guests or examples/guests; the flat one is a `'bin'`. */
export const guest = (name: string, kind: 'elf' | 'bin' = 'elf'): string => builtFile(`casemate-guest-${name}.${kind}`);

/** A flat binary of instructions in hexadecimal; docs/guest-abi.md has the ports. */
export const flat = (instructions: string): Uint8Array => Buffer.from(instructions.replaceAll(' ', ''), 'hex');

/** ud2: ends before its first hypercall. */
export const stillborn = flat('0f0b');
