import { readdirSync, readlinkSync } from 'node:fs';
import { warmUp } from 'casemate';
import { childrenOf, descriptorsOf, ifThere, namespaceKinds, readProc, within } from './proc.js';

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

/**
 * What `body` changes of this process's children, descriptors, mounts and namespaces: nothing, if all is well. The
 * launcher's pools are full before and after, and the kernel may take a second for its part.
 */
export async function leaks(body: () => unknown): Promise<string[]> {
  await warmUp();
  let before = holdings();
  // A helper task of the pools may be in its last moments.
  await within(1000, () => {
    const now = holdings();
    const still = difference(before, now).length === 0;
    before = now;
    return still;
  });
  await body();
  await warmUp();
  let left: string[] = [];
  await within(2000, () => {
    left = difference(before, holdings());
    return left.length === 0;
  });
  return left;
}
