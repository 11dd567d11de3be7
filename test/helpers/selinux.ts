/** What the kernel says of denials, on a host with casemate's policy. */
import { spawnSync } from 'node:child_process';
import { type Denial, followDenials } from 'casemate/selinux';
import { within } from './proc.js';

/** Runs a command to its good end. */
export function run(command: string, ...args: string[]): void {
  const { status, stderr, error } = spawnSync(command, args, { encoding: 'utf8' });
  if (status !== 0) throw new Error(`${command} ${args.join(' ')}: ${error?.message ?? stderr}`);
}

/** One that is denied by every policy with our module: a program that is no entrypoint of the domain. */
const mark = 'unconfined_u:unconfined_r:casemate_vmm_t:s0:c1022,c1023';

/**
 * Hears of every denial from now on that a monitor, or a file of casemate's, has part in. `all()` says which there were, once
 * each has arrived: they come in order, and it has one come that it knows.
 */
export function hearDenials(): { all(): Promise<Denial[]> } {
  const heard: Denial[] = [];
  const feed = followDenials((denial) => heard.push(denial));
  return {
    all: async () => {
      spawnSync('runcon', [mark, '/bin/true']);
      const last = () => heard.findIndex(({ source }) => source === mark);
      const isThere = await within(10_000, () => last() >= 0);
      feed.close();
      if (!isThere) throw new Error('No denial is heard of, not even one that was made for it');
      return heard.slice(0, last()).filter(({ source, target }) => /:casemate_\w+:/.test(`${source} ${target}`));
    },
  };
}
