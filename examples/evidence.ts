// Looks at the jail of a VM before its guest does anything, and refuses to go on unless all is as asked for.
import { launch } from 'casemate';

await using vm = await launch({ startPaused: true });

const { ok, layers } = await vm.evidence();
for (const { layer, asked, observed, source } of layers) {
  console.log(`${layer}: asked for ${asked}; observed ${observed} (${source})`);
}
if (!ok) throw new Error('the jail is not what was asked for');

await vm.resume();
vm.console.pipe(process.stdout);
await vm.exited;
