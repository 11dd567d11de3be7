import { wrapSystemError } from '../errors.js';
import { boolean, integer, invalid, object } from '../is.js';
import { native } from '../native.js';

/** A range of ids: `count` of them from `inside` on are those from `outside` on of the caller's user namespace. */
export interface IdMapping {
  readonly inside: number;
  readonly outside: number;
  readonly count: number;
}

/** What {@link userNamespace} takes. */
export interface UserNamespaceOptions {
  /** Lines of /proc/<pid>/uid_map. A caller without CAP_SETUID may map its own user, and only that. */
  readonly uids: readonly IdMapping[];
  /** Lines of /proc/<pid>/gid_map. */
  readonly gids: readonly IdMapping[];
  /** Whether setgroups(2) is denied in it; a caller without CAP_SETGID must. Default true. */
  readonly denySetgroups?: boolean;
  /** Whether no namespace of any kind can be made in it (/proc/sys/user/max_*_namespaces). Default false. */
  readonly forbidNamespaces?: boolean;
}

const maxId = 0xffff_fffe;

/**
 * A new user namespace with its maps written; user_namespaces(7). Enter it by the step `setns`, last.
 *
 * @returns its descriptor, close-on-exec, the caller's to close.
 * @throws CasemateError ERR_CASEMATE_INVALID_OPTION; ERR_CASEMATE_NAMESPACES, with errno EPERM where a map says
 * more than the caller may.
 */
export function userNamespace(options: UserNamespaceOptions): number {
  const given = object('options', options, ['uids', 'gids', 'denySetgroups', 'forbidNamespaces']);
  const uids = mapText('options.uids', given.uids);
  const gids = mapText('options.gids', given.gids);
  const denySetgroups = boolean('options.denySetgroups', given.denySetgroups ?? true);
  const forbidNamespaces = boolean('options.forbidNamespaces', given.forbidNamespaces ?? false);
  return wrapSystemError(
    'ERR_CASEMATE_NAMESPACES',
    () => native.makeUserNamespace(uids, gids, denySetgroups, forbidNamespaces),
    { step: 'userNamespace', remedy: 'Map only ids that are yours, or see `casemate doctor` for what is in the way.' },
  );
}

function mapText(name: string, value: unknown): string {
  if (!Array.isArray(value) || value.length === 0 || value.length > 340) {
    throw invalid(name, 'an array of 1 to 340 mappings', value);
  }
  return value
    .map((mapping, index) => {
      const at = `${name}[${index}]`;
      const { inside, outside, count } = object(at, mapping, ['inside', 'outside', 'count']);
      return [
        integer(`${at}.inside`, inside, 0, maxId),
        integer(`${at}.outside`, outside, 0, maxId),
        integer(`${at}.count`, count, 1, maxId),
      ].join(' ');
    })
    .join('\n');
}
