import { CasemateError, isSystemError } from '../errors.js';
import { native } from '../native.js';
import { categoriesOf, typeOf } from './context.js';
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
  /** In words, fit for a terminal whatever names the guest has chosen. */
  readonly tried: string;
  /** The smallest rule that grants it, in CIL; empty where none can. */
  readonly rule: string;
  /** The boolean of casemate's policy that grants it and so must be off: it is to be preferred to a rule. */
  readonly boolean: string | undefined;
  /** Why not to grant it; undefined where the isolation of VMs does not depend on it. */
  readonly warning: string | undefined;
}

const levelOf = (context: string): string => context.split(':').slice(3).join(':');

const nouns: Readonly<Record<string, string>> = {
  file: 'the file',
  dir: 'the folder',
  lnk_file: 'the symbolic link',
  chr_file: 'the device',
  blk_file: 'the disk',
  fifo_file: 'the pipe',
  sock_file: 'the socket',
  fd: 'a descriptor',
};

const verbs: Readonly<Record<string, string>> = {
  append: 'append to',
  connectto: 'connect to',
  create: 'make',
  entrypoint: 'be started from',
  getattr: 'look at',
  ioctl: 'control',
  ptrace: 'trace',
  relabelfrom: 'take the label from',
  relabelto: 'label',
  search: 'look into',
  setattr: 'change the attributes of',
  sigkill: 'kill',
  signull: 'look for',
  sigstop: 'stop',
  transition: 'become',
  unlink: 'remove',
};

const isCapability = (kind: string): boolean => /^cap/.test(kind);

/** `read and write the file /dev/kvm`: what is said of the target besides its label. */
function wordsOf({ class: kind, permissions, path }: Denial): string {
  const list = (words: readonly string[]) => words.join(', ').replace(/, ([^,]*)$/, ' and $1');
  if (isCapability(kind)) return `use the capability ${list(permissions)}`;
  const plain = kind.replaceAll('_', ' ');
  const noun = nouns[kind] ?? `${/^[aeio]/.test(plain) ? 'an' : 'a'} ${plain}`;
  return `${list(permissions.map((one) => verbs[one] ?? one))} ${noun}${path === undefined ? '' : ` ${path}`}`;
}

/** Names are the guest's to choose: none of them moves a cursor or pretends to be another line. */
const printable = (text: string): string =>
  text.replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu, (one) => `\\u{${one.codePointAt(0)?.toString(16)}}`);

type Boundary = readonly [(denial: Denial) => boolean, string];

const secrets: Boundary = [
  ({ target }) => /^(shadow|passwd_file|security|selinux_config|user_home|auth_)/.test(typeOf(target)),
  'Secrets and homes are nothing that a guest should reach.',
];

/** What breaks the isolation of a VM where it is granted to its monitor, with the reason. */
const boundariesOfMonitors: readonly Boundary[] = [
  [
    ({ class: kind, permissions }) =>
      /^process2?$/.test(kind) &&
      permissions.some((one) => /^(ptrace|transition|dyntransition|setexec|setcurrent|nnp_|nosuid_)/.test(one)),
    'It would let a monitor leave its domain or control processes.',
  ],
  [({ class: kind }) => isCapability(kind), 'A monitor has no capabilities; what needs one is an attack or a mistake.'],
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
  secrets,
];

/** Likewise where it is granted to anybody else: a service that launches, or a stranger. */
const boundariesOfOthers: readonly Boundary[] = [
  [
    ({ target }) => [types.monitor, types.image].some((type) => type === typeOf(target)),
    'It would give whatever runs in that domain a hold on VMs.',
  ],
  [
    ({ class: kind }) => isCapability(kind) || kind === 'security',
    'It would be the right of whoever takes that service over, too.',
  ],
  secrets,
];

const foreignCategories =
  'Its label has categories that this VM has not: where the policy constrains that, no rule grants it. Label it without.';

/** Booleans of policy/casemate.cil, with what each grants a monitor. */
const booleans: readonly (readonly [name: string, type: string, tclass: string, permissions: readonly string[]])[] = [
  ['casemate_kvm', 'kvm_device_t', 'chr_file', ['read', 'write', 'getattr', 'ioctl']],
  ['casemate_tun', 'tun_tap_device_t', 'chr_file', ['read', 'write', 'getattr', 'ioctl']],
];

/** Says what a denial was of, and what to do. */
export function adviseOn(denial: Denial): DenialAdvice {
  const { source, target, class: kind, permissions, pid } = denial;
  const [from, to] = [typeOf(source), typeOf(target)];
  const isMonitor = from === types.monitor;
  const who = [levelOf(source), ...(pid === undefined ? [] : [`process ${pid}`])].join(', ');
  const whose = isCapability(kind) ? '' : `, labelled ${target}`;
  const tried = printable(`${isMonitor ? 'A monitor' : from} (${who}) tried to ${wordsOf(denial)}${whose}`);
  const none = { tried, boolean: undefined };

  const own = categoriesOf(source);
  const isBeyond = isMonitor && categoriesOf(target).some((one) => !own.includes(one));
  if (isBeyond && (to === types.monitor || to === types.image)) {
    const warning = "It is another VM's: no rule can grant it, and none should. Look at the guest.";
    return { ...none, rule: '', warning };
  }
  if (!isMonitor && to === types.monitor && kind === 'process' && permissions.includes('transition')) {
    const warning = 'Whatever runs in that domain could then launch VMs, and end them.';
    return { ...none, rule: `(typeattributeset casemate_caller (${from}))`, warning };
  }
  const rule = `(allow ${from} ${from === to ? 'self' : to} (${kind} (${permissions.join(' ')})))`;
  const [boolean] =
    booleans.find(
      ([, type, tclass, granted]) =>
        isMonitor && type === to && tclass === kind && permissions.every((one) => granted.includes(one)),
    ) ?? [];
  const boundaries = isMonitor ? boundariesOfMonitors : boundariesOfOthers;
  const [, warning = isBeyond ? foreignCategories : undefined] = boundaries.find(([matches]) => matches(denial)) ?? [];
  return { tried, rule, boolean, warning };
}
