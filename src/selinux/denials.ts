import { CasemateError, isSystemError } from '../errors.js';
import { native } from '../native.js';
import { types } from './label.js';
import type { KernelMessages } from './native.js';

/** Something that the policy denied, or would have; an AVC record of the kernel. */
export interface Denial {
  /** Context of who tried, and of what it tried it on. */
  readonly source: string;
  readonly target: string;
  /** What the target is: `'file'`, `'process'`, `'tcp_socket'`. */
  readonly class: string;
  /** What was tried: `'read'`, `'open'`. */
  readonly permissions: readonly string[];
  /** False: it was only logged, the host or the domain being permissive. */
  readonly enforced: boolean;
  /** In the initial pid namespace. */
  readonly pid: number | undefined;
  /** The thread's name, and the path or name of the target, where the kernel tells them. They are the guest's to choose. */
  readonly command: string | undefined;
  readonly path: string | undefined;
  /** Of the record: seconds since 1970 and a serial number, `'1795419128.145:2'`. */
  readonly id: string | undefined;
}

/** A quoted value as the kernel writes it, or in hexadecimal where it has characters that would not do. */
function value(text: string, name: string): string | undefined {
  const [, quoted, plain] = new RegExp(` ${name}=(?:"([^"]*)"|(\\S+))`).exec(text) ?? [];
  if (quoted !== undefined || plain === undefined) return quoted;
  return /^([0-9A-F]{2})+$/.test(plain) && /^(comm|path|name)$/.test(name)
    ? Buffer.from(plain, 'hex').toString('utf8')
    : plain;
}

/** Takes a record apart, of audit or of the kernel's log; undefined where it is none of a denial. */
export function parseDenial(text: string): Denial | undefined {
  const [, permissions] = /avc: +denied +\{ ([^}]*)\}/.exec(text) ?? [];
  const [source, target, tclass] = ['scontext', 'tcontext', 'tclass'].map((name) => value(text, name));
  if (permissions === undefined || source === undefined || target === undefined || tclass === undefined)
    return undefined;
  const pid = value(text, 'pid');
  return {
    source,
    target,
    class: tclass,
    permissions: permissions.trim().split(/\s+/),
    enforced: value(text, 'permissive') !== '1',
    pid: pid === undefined ? undefined : Number(pid),
    command: value(text, 'comm'),
    path: value(text, 'path') ?? value(text, 'name'),
    id: /audit\(([\d.:]+)\)/.exec(text)?.[1],
  };
}

/** Denials as they come. */
export interface DenialFeed {
  /** Where they come from. */
  readonly source: 'audit' | 'log';
  /** No more of them. */
  close(): void;
}

const netlinkHeader = 16;

/**
 * Hears of denials from now on: by audit where this process may (CAP_AUDIT_READ, the initial network namespace), else by the
 * kernel's log (CAP_SYSLOG, or kernel.dmesg_restrict=0), which leaves some out when there are many. It does not keep the event
 * loop alive.
 *
 * @throws CasemateError `ERR_CASEMATE_SELINUX` where it may neither.
 */
export function followDenials(onDenial: (denial: Denial) => void): DenialFeed {
  const hear = (text: string) => {
    const denial = parseDenial(text);
    if (denial !== undefined) onDenial(denial);
  };
  try {
    const messages = new native.KernelMessages('audit', (bytes) => hear(bytes.toString('utf8', netlinkHeader)));
    return { close: () => messages.close(), source: 'audit' };
  } catch (error) {
    if (!isSystemError(error)) throw error;
  }
  try {
    const messages: KernelMessages = new native.KernelMessages('log', (bytes) => hear(bytes.toString('utf8')));
    return { close: () => messages.close(), source: 'log' };
  } catch (cause) {
    if (!isSystemError(cause)) throw cause;
    throw new CasemateError('ERR_CASEMATE_SELINUX', `Denials cannot be heard of: ${cause.message}`, {
      step: 'denials',
      remedy: 'Give the process CAP_AUDIT_READ or CAP_SYSLOG, or set kernel.dmesg_restrict=0.',
      cause,
    });
  }
}

/** What a denial means, and what would end it. */
export interface DenialAdvice {
  /** In words. */
  readonly tried: string;
  /** The smallest rule that grants it, in CIL. */
  readonly rule: string;
  /** Why not to grant it; undefined where the isolation of VMs does not depend on it. */
  readonly warning: string | undefined;
}

const typeOf = (context: string): string => context.split(':')[2] ?? context;
const levelOf = (context: string): string => context.split(':').slice(3).join(':');

/** What breaks the isolation of a VM where it is granted, with the reason. */
const boundaries: readonly (readonly [(denial: Denial) => boolean, string])[] = [
  [
    ({ class: kind, permissions }) =>
      /^process2?$/.test(kind) &&
      permissions.some((one) => /^(ptrace|transition|dyntransition|setexec|setcurrent|nnp_|nosuid_)/.test(one)),
    'It would let a monitor leave its domain or control processes.',
  ],
  [({ class: kind }) => /^cap/.test(kind), 'A monitor has no capabilities; what needs one is an attack or a mistake.'],
  [
    ({ class: kind }) => /(?<!unix_stream|unix_dgram|tun)_socket$|^(node|netif|packet)$/.test(kind),
    'It would give every guest that takes its monitor over the network of the host.',
  ],
  [
    ({ class: kind, permissions }) =>
      kind === 'process' && permissions.some((one) => /^exec(mem|stack|heap)$/.test(one)),
    'Memory that is written and executed makes an attack on the monitor easier.',
  ],
  [
    ({ permissions }) => permissions.some((one) => one === 'open' || one === 'execute_no_trans'),
    'A monitor is handed its files. One that opens or executes files is not as it should be.',
  ],
  [
    ({ permissions }) => permissions.includes('entrypoint'),
    "Every program with that label could then be started in a monitor's place.",
  ],
  [
    ({ target }) => /^(shadow|passwd_file|security|selinux_config|user_home|auth_)/.test(typeOf(target)),
    'Secrets and homes are nothing that a guest should reach.',
  ],
];

/** Says what a denial was of, and what to do. */
export function adviseOn(denial: Denial): DenialAdvice {
  const { source, target, permissions, path } = denial;
  const who = typeOf(source) === types.monitor ? `A monitor (${levelOf(source)})` : typeOf(source);
  const what = `${permissions.join(', ')} ${denial.class} ${path ?? ''}`.trim();
  const tried = `${who} tried: ${what}, labelled ${target}`;
  const isOther =
    [types.monitor, types.image].some((type) => type === typeOf(target)) && levelOf(source) !== levelOf(target);
  const rule = `(allow ${typeOf(source)} ${typeOf(target)} (${denial.class} (${permissions.join(' ')})))`;
  if (isOther) {
    return {
      tried,
      rule: '',
      warning: "It is another VM's: no rule can grant it, and none should. Look at the guest.",
    };
  }
  return { tried, rule, warning: boundaries.find(([matches]) => matches(denial))?.[1] };
}
