// Many guests at once, and one signal that ends those which take too long. Build the guest first, see
// docs/guest-abi.md: examples/guests/upper.c to upper.elf.
import { text } from 'node:stream/consumers';
import { describeExit, launch, warmUp } from 'casemate';

await warmUp(); // make the namespaces of the first launches now, not while somebody waits

const signal = AbortSignal.timeout(10_000);
const words = ['each', 'of', 'these', 'words', 'has', 'a', 'machine', 'of', 'its', 'own'];

const answers = await Promise.all(
  words.map(async (word) => {
    await using vm = await launch({ guest: 'upper.elf', name: word, signal });
    vm.console.end(word);
    const answer = await text(vm.console);
    const exit = await vm.exited;
    if (exit.reason !== 'exit') throw new Error(`${word}: ${describeExit(exit)}`);
    return answer;
  }),
);
console.log(answers.join(' '));
