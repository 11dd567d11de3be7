/** What an SELinux label adds to a launch, step by step: `npm run bench:selinux`, in the rig with our policy enforced. */
import { launch, warmUp } from 'casemate';
import { mode } from 'casemate/selinux';

const kinds = ['off', 'enforcing'] as const;
type Kind = (typeof kinds)[number];

/** Of one launch, in microseconds: `total`, from the call to the guest's doorbell, and each step. */
async function timed(selinux: Kind): Promise<Map<string, number>> {
  const options = { console: 'ignore', jail: { selinux } } as const;
  await warmUp(options);
  const vm = await launch(options);
  const { t0, t1, steps } = vm.timeline;
  await vm.kill();
  const micros = (ns: bigint | number) => Number(ns) / 1000;
  return new Map([['total', micros(t1 - t0)], ...steps.map((step) => [name(step), micros(step.durationNs)] as const)]);
}

const name = ({ where, name }: { where: string; name: string }): string => `${where} ${name}`;

const median = (list: number[]): number => list.sort((a, b) => a - b)[list.length >> 1] ?? 0;

/** Launches with and without, in turns, and a table of the medians. The first ones of a process are not counted. */
export async function selinuxCost(launches: number): Promise<string> {
  if (mode() !== 'enforcing') throw new Error('SELinux does not enforce a policy here: CASEMATE_RIG_SELINUX=module');
  const all: Record<Kind, Map<string, number[]>> = { off: new Map(), enforcing: new Map() };
  for (let i = -50; i < launches; i += 1) {
    // What a launch leaves to be torn down delays the next one: each kind follows either as often.
    for (const kind of i % 2 === 0 ? kinds : kinds.toReversed()) {
      const one = await timed(kind);
      if (i < 0) continue;
      for (const [step, us] of one) all[kind].set(step, [...(all[kind].get(step) ?? []), us]);
    }
  }
  const steps = [...all.enforcing.keys()];
  const rows = steps.map((step) => {
    const [without, labelled] = kinds.map((kind) => median(all[kind].get(step) ?? []));
    return { step, without: without as number, labelled: labelled as number };
  });
  const lines = rows.map(({ step, without, labelled }) => {
    const columns = [without, labelled, labelled - without].map((us) => us.toFixed(0).padStart(9));
    return `${step.padEnd(22)}${columns.join('')}`;
  });
  const { without, labelled } = rows[0] as (typeof rows)[number];
  const more = `${((labelled / without - 1) * 100).toFixed(1)} %`;
  const head = `${'µs, medians'.padEnd(22)}${['off', 'enforcing', 'more'].map((each) => each.padStart(9)).join('')}`;
  return `${launches} launches each, in turns: ${more} with a label\n\n${[head, ...lines].join('\n')}\n`;
}
