// Runs the built-in guest, and shows what it says and how it ends.
import { launch } from 'casemate';

const vm = await launch({ args: ['from', 'Node'] });
vm.console.pipe(process.stdout);

const exit = await vm.exited;
console.log(exit); // { reason: 'exit', code: 0 }
