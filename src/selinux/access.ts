import { closeSync, openSync, readdirSync, readFileSync, readSync, writeSync } from 'node:fs';

const selinuxfs = '/sys/fs/selinux';

/** Number of a class, and the bits of its permissions, as the loaded policy has them. */
const classes = new Map<string, { readonly index: number; readonly bits: ReadonlyMap<string, number> }>();

function classOf(name: string) {
  let known = classes.get(name);
  if (known === undefined) {
    const folder = `${selinuxfs}/class/${name}`;
    const number = (path: string) => Number(readFileSync(`${folder}/${path}`, 'utf8'));
    const bits = readdirSync(`${folder}/perms`).map((perm) => [perm, 2 ** (number(`perms/${perm}`) - 1)] as const);
    known = { index: number('index'), bits: new Map(bits) };
    classes.set(name, known);
  }
  return known;
}

/**
 * Which of some permissions the loaded policy does not grant, categories considered; selinux_check_access(3), but without
 * a denial in the log. It is the policy that is asked, whether or not it is enforced.
 *
 * @internal
 */
export function deniedOf(source: string, target: string, tclass: string, permissions: readonly string[]): string[] {
  const { index, bits } = classOf(tclass);
  // A file of transactions: what is written is the question, and what is read from the same descriptor the answer.
  const fd = openSync(`${selinuxfs}/access`, 'r+');
  try {
    writeSync(fd, `${source} ${target} ${index} ffffffff`);
    const answer = Buffer.alloc(256);
    const text = answer.toString('latin1', 0, readSync(fd, answer, 0, answer.length, null));
    const granted = Number.parseInt(text.split(' ')[0] ?? '0', 16);
    return permissions.filter((name) => (granted & (bits.get(name) ?? 0)) === 0);
  } finally {
    closeSync(fd);
  }
}
