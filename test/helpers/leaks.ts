import { readdirSync, readlinkSync } from 'node:fs';
import { setTimeout as delay } from 'node:timers/promises';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { warmUp } from 'casemate';
import { devNull, poolsFilled } from '#lib/jail/launcher.js';
import { has } from './capabilities.js';
import { childrenOf, descriptorsOf, ifThere, namespaceKinds, patience, readProc, within } from './proc.js';

setFlagsFromString('--expose-gc');
/** What other tests have dropped without closing it would else go at some moment between two looks. */
const collectGarbage: () => void = runInNewContext('gc');

/** What a launch could leave behind in this process and on its host. */
interface Holdings {
  readonly children: readonly string[];
  /** What the open descriptors are, without the numbers that make each of them unique. */
  readonly descriptors: readonly string[];
  readonly mounts: readonly string[];
  /** Namespaces that some thread of ours, or of a child, is in. */
  readonly namespaces: readonly string[];
}

function holdings(): Holdings {
  const children = childrenOf('self');
  const namespaces = ['self', ...children].flatMap((pid) =>
    (ifThere(() => readdirSync(`/proc/${pid}/task`)) ?? []).flatMap((task) =>
      namespaceKinds.map((kind) => ifThere(() => readlinkSync(`/proc/${pid}/task/${task}/ns/${kind}`)) ?? ''),
    ),
  );
  return {
    children: children.map(String),
    descriptors: [...descriptorsOf('self').values()].map((target) => target.replace(/:\[\d+\]$/, '')).sort(),
    mounts: readProc('self', 'mountinfo').trim().split('\n'),
    namespaces: [...new Set(namespaces)].sort(),
  };
}

/** What is in `after` and not in `before`, counting how often. */
function surplus(before: readonly string[], after: readonly string[]): string[] {
  const rest = [...before];
  return after.filter((item) => {
    const at = rest.indexOf(item);
    if (at >= 0) rest.splice(at, 1);
    return at < 0;
  });
}

function difference(before: Holdings, after: Holdings): string[] {
  return (Object.keys(before) as (keyof Holdings)[]).flatMap((what) => [
    ...surplus(before[what], after[what]).map((item) => `+ ${what}: ${item}`),
    ...surplus(after[what], before[what]).map((item) => `- ${what}: ${item}`),
  ]);
}

/** What a Node keeps that has launched once: its pools, full, and the two devices that it opens once. */
async function settled(): Promise<void> {
  if (has('kvm')) return warmUp();
  devNull();
  await poolsFilled();
}

/**
 * What `body` changes of this process's children, descriptors, mounts and namespaces: nothing, if all is well. The
 * pools are full before and after, and what is closed by way of the event loop or the kernel has a moment for that.
 *
 * @param isOurs - of a line of it, false for what somebody else has left and nobody will close.
 */
export async function leaks(body: () => unknown, isOurs: (line: string) => boolean = () => true): Promise<string[]> {
  collectGarbage();
  await settled();
  let before = holdings();
  for (let quiet = 0; quiet < 5; ) {
    await delay(10 * patience);
    const now = holdings();
    quiet = difference(before, now).length === 0 ? quiet + 1 : 0;
    before = now;
  }
  await body();
  await settled();
  let left: string[] = [];
  await within(10_000, () => {
    left = difference(before, holdings()).filter(isOurs);
    return left.length === 0;
  });
  return left;
}
