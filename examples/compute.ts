// Hands a guest a buffer to compute on. Build the guest first, see docs/guest-abi.md:
// examples/guests/sum.c to sum.elf.
import { text } from 'node:stream/consumers';
import { launch } from 'casemate';

const numbers = Uint32Array.from({ length: 1_000_000 }, (_, i) => i);

// The guest gets a private copy, in its memory before it starts. That memory must have room for it.
await using vm = await launch({ guest: 'sum.elf', input: new Uint8Array(numbers.buffer), memoryMib: 32 });
console.log(await text(vm.console)); // count 1000000, sum 499999500000, ...
