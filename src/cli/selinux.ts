import { once } from 'node:events';
import { typeOf } from '../selinux/context.js';
import { adviseOn, type Denial, type DenialAdvice, followDenials } from '../selinux/denials.js';
import { restoreLabels } from '../selinux/files.js';
import { checkModule, installModule, removeModule, selinuxStatus } from '../selinux/module.js';
import type { SelinuxCommand } from './args.js';
import { columns } from './format.js';

const print = (text: string): void => {
  process.stdout.write(`${text}\n`);
};

/** `casemate selinux ...`; its exit code. */
export async function selinux({ action, json }: SelinuxCommand): Promise<number> {
  switch (action) {
    case 'status': {
      const status = selinuxStatus();
      if (json) print(JSON.stringify(status, undefined, 2));
      else {
        const rows = [
          ['mode', status.mode],
          ['this process', status.context ?? 'no context'],
          ['a VM', status.label === undefined ? `no label: ${status.unlabelled}` : `${status.label}, for example`],
        ];
        print(columns(rows).join('\n'));
      }
      return 0;
    }
    case 'check': {
      const findings = checkModule();
      if (json) print(JSON.stringify(findings, undefined, 2));
      else {
        for (const { ok, name, detail, remedy } of findings) {
          print(`${ok ? '✓' : '✗'} ${name}: ${detail}${remedy === undefined ? '' : `\n  → ${remedy}`}`);
        }
      }
      return findings.every(({ ok }) => ok) ? 0 : 1;
    }
    case 'install':
      installModule();
      print('The module casemate is in the policy. `casemate selinux check` looks at everything once more.');
      return 0;
    case 'remove':
      removeModule();
      print('The module casemate is out of the policy.');
      return 0;
    case 'restore':
      for (const path of restoreLabels()) print(path);
      return 0;
    case 'denials':
      return followOn(json);
  }
}

/** Denials of one kind, of whichever VMs and files. */
interface Kind {
  readonly first: Denial;
  readonly sources: Set<string>;
  count: number;
}

/** Until it is interrupted, or nobody reads it any more: each kind of denial once, and how many there were of it at the end. */
async function followOn(json: boolean): Promise<number> {
  const kinds = new Map<string, Kind>();
  const feed = followDenials((denial) => {
    const { source, target, class: tclass, permissions, enforced } = denial;
    if (!/:casemate_\w+_t:/.test(`${source} ${target}`)) return;
    if (json) return print(JSON.stringify({ ...denial, ...adviseOn(denial) }));
    const advice = adviseOn(denial);
    const key = [typeOf(source), typeOf(target), tclass, permissions, enforced, advice.rule].join(' ');
    const kind = kinds.get(key);
    if (kind === undefined) {
      kinds.set(key, { first: denial, sources: new Set([source]), count: 1 });
      explain(denial, advice);
      return;
    }
    kind.sources.add(source);
    kind.count += 1;
  });
  const alive = setInterval(() => {}, 2 ** 30);
  let isRead = true;
  const unread = new Promise<void>((resolve) => {
    process.stdout.on('error', () => {
      isRead = false;
      resolve();
    });
  });
  // Whoever reads the first line may end it from then on.
  const ended = Promise.race([once(process, 'SIGINT'), once(process, 'SIGTERM'), unread]);
  if (!json) {
    const way = feed.source === 'audit' ? 'audit' : "the kernel's log";
    print(`Denials from now on, by ${way}, each kind once; Ctrl-C ends this and counts them.`);
  }
  await ended;
  clearInterval(alive);
  feed.close();
  if (!json && isRead) summarize([...kinds.values()]);
  return 0;
}

function explain({ enforced }: Denial, { tried, rule, boolean, warning }: DenialAdvice): void {
  print(`${enforced ? 'denied' : 'would be denied'}: ${tried}`);
  if (boolean !== undefined) print(`  granted by \`setsebool -P ${boolean} on\``);
  else if (rule !== '') print(`  granted by ${rule}`);
  if (warning !== undefined) print(`  ! ${warning}`);
}

function summarize(kinds: readonly Kind[]): void {
  if (kinds.length === 0) return print('Nothing was denied.');
  const rows = [...kinds]
    .sort((one, other) => other.count - one.count)
    .map(({ first, sources, count }) => [
      String(count),
      String(sources.size),
      typeOf(first.source),
      `${first.class} ${first.permissions.join(' ')}`,
      typeOf(first.target),
    ]);
  const head = ['times', 'labels', 'who', 'what', 'on'];
  print(['', ...columns([head, ...rows], [0, 1])].join('\n'));
}
