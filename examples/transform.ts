// Sends text through a guest that turns it into capitals. Build the guest first, see docs/guest-abi.md:
// examples/guests/upper.c to upper.elf.
import { text } from 'node:stream/consumers';
import { launch } from 'casemate';

await using vm = await launch({ guest: 'upper.elf' });
vm.console.end('what the guest reads, it shouts.\n');
console.log(await text(vm.console)); // WHAT THE GUEST READS, IT SHOUTS.
