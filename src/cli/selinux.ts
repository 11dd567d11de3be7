import { once } from 'node:events';
import { adviseOn, type Denial, followDenials } from '../selinux/denials.js';
import { restoreLabels } from '../selinux/files.js';
import { checkModule, installModule, removeModule, selinuxStatus } from '../selinux/module.js';
import type { SelinuxCommand } from './args.js';
import { columns } from './format.js';

const print = (text: string) => process.stdout.write(`${text}\n`);

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

/** Until it is interrupted: each kind of denial once, and how many there were of it at the end. */
async function followOn(json: boolean): Promise<number> {
  const groups = new Map<string, { denial: Denial; count: number }>();
  const feed = followDenials((denial) => {
    if (!/:casemate_\w+_t:/.test(`${denial.source} ${denial.target}`)) return;
    if (json) return print(JSON.stringify({ ...denial, ...adviseOn(denial) }));
    const key = [denial.source, denial.target, denial.class, denial.permissions, denial.enforced].join(' ');
    const group = groups.get(key);
    if (group !== undefined) {
      group.count += 1;
      return undefined;
    }
    groups.set(key, { denial, count: 1 });
    explain(denial);
    return undefined;
  });
  if (!json)
    print(`Denials from now on, by ${feed.source === 'audit' ? 'audit' : "the kernel's log"}; Ctrl-C ends this.`);
  const alive = setInterval(() => {}, 2 ** 30);
  await Promise.race([once(process, 'SIGINT'), once(process, 'SIGTERM')]);
  clearInterval(alive);
  feed.close();
  for (const { denial, count } of groups.values()) if (count > 1) print(`${count} times: ${adviseOn(denial).tried}`);
  return 0;
}

function explain(denial: Denial): void {
  const { tried, rule, warning } = adviseOn(denial);
  print(`${denial.enforced ? 'denied' : 'would be denied'}: ${tried}`);
  if (rule !== '') print(`  granted by ${rule}`);
  if (warning !== undefined) print(`  ! ${warning}`);
}
