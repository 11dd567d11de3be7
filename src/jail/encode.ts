import { CasemateError } from '../errors.js';
import { interfaceName, type Network, parseAddress, parseNetwork } from './address.js';
import { type Check, namespaceFlags, type Plan, rlimitResources, type Step, type StepName } from './steps.js';

/**
 * The numbers of native/jail/plan.h. A test compiles that header and compares.
 * @internal
 */
export const planFormat = {
  magic: 0x6e6c706d,
  version: 1,
  headerSize: 40,
  slots: 24,
  noSlot: 0xffffffff,
  maxSteps: 96,
  maxSize: 1 << 20,
  operations: {
    execLabel: 1,
    socketLabel: 2,
    socketPair: 3,
    pooled: 4,
    tap: 5,
    setns: 16,
    unshare: 17,
    mount: 18,
    umount: 19,
    pivotRoot: 20,
    mountSetattr: 21,
    moveMount: 22,
    mkdir: 23,
    chdir: 24,
    checkCwd: 25,
    hostname: 26,
    domainname: 27,
    rlimit: 28,
    session: 29,
    keyring: 30,
    coreScheduling: 31,
    descriptors: 32,
    ids: 34,
    dropBounding: 35,
    capabilities: 36,
    securebits: 37,
    noNewPrivs: 38,
    landlock: 39,
    seccomp: 40,
    parentDeath: 41,
    umask: 42,
    exec: 43,
  } satisfies Record<StepName, number>,
  checks: { ids: 1, capabilities: 2, noNewPrivs: 4, seccomp: 8, label: 16 } satisfies Record<Check, number>,
  pools: { net: 1, user: 2 },
  tapFlags: { existing: 1, persistent: 2 },
  tapName: 16,
  maxTapAddresses: 16,
  maxTapRoutes: 16,
  families: { 4: 2, 6: 10 },
  socketTypes: { stream: 1, seqpacket: 5 },
} as const;

/** Further bounds of native/jail/plan.cpp, which refuses what goes beyond as this file does. */
const maxDescriptorNumber = 1023;
const maxStrings = 512;
const maxInstructions = 4096;

/** A plan as the launcher takes it. */
export interface EncodedPlan {
  readonly bytes: Uint8Array;
  /** How many of the steps the launcher itself runs, before clone3. */
  readonly launcherSteps: number;
  /** The operations, in order. */
  readonly steps: readonly StepName[];
  /** Names of the descriptors that a launch gives, in order. */
  readonly given: readonly string[];
  /** Slot numbers by descriptor name. */
  readonly slots: ReadonlyMap<string, number>;
}

const launcherOperations: ReadonlySet<StepName> = new Set(['execLabel', 'socketLabel', 'socketPair', 'pooled', 'tap']);

/**
 * Encodes a plan into the buffer of native/jail/plan.h.
 *
 * @throws CasemateError ERR_CASEMATE_INVALID_OPTION where steps are out of order, a name is unknown or taken,
 * or something does not fit.
 */
export function encodePlan(plan: Plan): EncodedPlan {
  const slots = new Slots(plan.descriptors);
  const writer = new Writer();
  let launcherSteps = 0;
  if (plan.steps.length > planFormat.maxSteps) throw refused(`at most ${planFormat.maxSteps} steps`);
  plan.steps.forEach((step, index) => {
    const byLauncher = launcherOperations.has(step.op);
    if (byLauncher && launcherSteps !== index) {
      throw refused(`${step.op} before the steps of the child`, 'Put the steps of the launcher first in plan.steps.');
    }
    if (byLauncher) launcherSteps += 1;
    if (step.op === 'exec' && index !== plan.steps.length - 1) throw refused('exec as the last step');
    const start = writer.length;
    writer.u32(planFormat.operations[step.op]);
    writer.u32(0);
    encodeStep(writer, step, slots);
    writer.align(8);
    writer.patchU32(start + 4, writer.length - start);
  });

  const header = new Writer();
  header.u32(planFormat.magic);
  header.u32(planFormat.version);
  header.u32(planFormat.headerSize + writer.length);
  header.u32(launcherSteps);
  header.u32(plan.steps.length - launcherSteps);
  header.u32(plan.cgroup === undefined ? planFormat.noSlot : slots.of(plan.cgroup));
  header.u64(BigInt(flagsOf(plan.clone)));
  header.u32(plan.check.reduce((bits, check) => bits | planFormat.checks[check], 0));
  header.u32(0);

  const bytes = Buffer.concat([header.bytes(), writer.bytes()]);
  if (bytes.length > planFormat.maxSize) throw refused(`at most ${planFormat.maxSize} bytes`);
  return {
    bytes,
    launcherSteps,
    steps: plan.steps.map((step) => step.op),
    given: plan.descriptors,
    slots: slots.names,
  };
}

function encodeStep(to: Writer, step: Step, slots: Slots): void {
  switch (step.op) {
    case 'execLabel':
    case 'socketLabel':
      return to.text(step.label);
    case 'hostname':
    case 'domainname':
      return to.text(step.name);
    case 'socketPair':
      to.u32(planFormat.socketTypes[step.type]);
      to.u32(slots.add(step.child));
      to.u32(slots.add(step.ours));
      return to.u32(0);
    case 'pooled':
      to.u32(planFormat.pools[step.pool]);
      to.u32(slots.add(step.as));
      to.u32(step.lease === undefined ? planFormat.noSlot : slots.add(step.lease));
      return to.u32(0);
    case 'tap':
      return encodeTap(to, step, slots);
    case 'setns':
      to.u32(slots.of(step.namespace));
      return to.u32(namespaceFlags[step.kind]);
    case 'unshare':
      return to.u64(BigInt(flagsOf(step.kinds)));
    case 'mount':
      to.u64(BigInt(step.flags));
      return to.strings(step.source, step.target, step.type, step.data);
    case 'umount':
      to.u64(BigInt(step.flags));
      return to.strings(step.target);
    case 'pivotRoot':
      return to.strings(step.root);
    case 'mountSetattr':
      to.u64(BigInt(step.set));
      to.u64(BigInt(step.clear));
      to.u64(BigInt(step.propagation));
      to.u32(step.recursive ? 1 : 0);
      to.u32(0);
      return to.strings(step.target);
    case 'moveMount':
      to.u32(slots.of(step.mount));
      to.u32(0);
      return to.strings(step.target);
    case 'mkdir':
      to.u32(step.mode);
      to.u32(0);
      return to.strings(step.path);
    case 'chdir':
      return to.strings(step.path);
    case 'rlimit':
      to.u32(rlimitResources[step.resource]);
      to.u32(0);
      to.u64(step.soft);
      return to.u64(step.hard);
    case 'descriptors': {
      const pairs = Object.entries(step.map)
        .flatMap(([name, numbers]) => [numbers].flat().map((number) => ({ slot: slots.of(name), number })))
        .sort((left, right) => left.number - right.number);
      if (pairs.length > planFormat.slots) throw refused(`at most ${planFormat.slots} descriptors`);
      for (const [index, { number }] of pairs.entries()) {
        if (number > maxDescriptorNumber) throw refused(`descriptor numbers up to ${maxDescriptorNumber}`);
        if (number === pairs[index - 1]?.number) throw refused(`one descriptor at number ${number}, not two`);
      }
      to.u32(pairs.length);
      to.u32(0);
      for (const { slot, number } of pairs) {
        to.u32(slot);
        to.u32(number);
      }
      return;
    }
    case 'ids':
      // To the kernel this number means: leave it as it is.
      if (step.uid === 0xffffffff || step.gid === 0xffffffff) throw refused('ids below 4294967295');
      to.u32(step.uid);
      to.u32(step.gid);
      to.u32(step.clearGroups ? 1 : 0);
      return to.u32(0);
    case 'capabilities':
      to.u64(step.effective);
      to.u64(step.permitted);
      return to.u64(step.inheritable);
    case 'securebits':
      return to.u64(BigInt(step.bits));
    case 'parentDeath':
      return to.u64(BigInt(step.signal));
    case 'seccomp':
      if (step.program.length === 0 || step.program.length % 8 !== 0 || step.program.length > maxInstructions * 8) {
        throw refused(`a seccomp program of 1 to ${maxInstructions} 8-byte instructions`);
      }
      to.u32(step.flags);
      to.u32(step.program.length / 8);
      return to.raw(step.program);
    case 'umask':
      to.u32(step.mask);
      return to.u32(0);
    case 'exec':
      if (step.args.length === 0 || step.args.length > maxStrings || step.env.length > maxStrings) {
        throw refused(`1 to ${maxStrings} arguments and up to ${maxStrings} variables`);
      }
      to.u32(step.args.length);
      to.u32(step.env.length);
      return to.strings(step.path, ...step.args, ...step.env);
    case 'checkCwd':
    case 'session':
    case 'keyring':
    case 'coreScheduling':
    case 'dropBounding':
    case 'noNewPrivs':
    case 'landlock':
      return;
  }
}

function encodeTap(to: Writer, step: Extract<Step, { op: 'tap' }>, slots: Slots): void {
  const { families, tapFlags, noSlot, maxTapAddresses, maxTapRoutes } = planFormat;
  const { namespace, addresses, routes } = step;
  if (addresses.length > maxTapAddresses) throw refused(`at most ${maxTapAddresses} addresses of a tap`);
  if (routes.length > maxTapRoutes) throw refused(`at most ${maxTapRoutes} routes through a tap`);
  const network = ({ family, prefix, bytes }: Network) => {
    to.u32(families[family]);
    to.u32(prefix);
    to.padded(bytes, 16);
  };
  to.u32(namespace === undefined ? noSlot : slots.of(namespace));
  to.u32(slots.add(step.as));
  to.u32((step.existing ? tapFlags.existing : 0) | (step.persistent ? tapFlags.persistent : 0));
  to.u32(step.mtu);
  to.u32(addresses.length);
  to.u32(routes.length);
  to.padded(Buffer.from(interfaceName('tap.name', step.name)), planFormat.tapName);
  to.padded(step.bridge === '' ? [] : Buffer.from(interfaceName('tap.bridge', step.bridge)), planFormat.tapName);
  for (const [index, address] of addresses.entries()) network(parseNetwork(`tap.addresses[${index}]`, address));
  for (const [index, { to: target, via }] of routes.entries()) {
    const parsed = parseNetwork(`tap.routes[${index}].to`, target);
    const gateway = via === undefined ? undefined : parseAddress(`tap.routes[${index}].via`, via);
    if (gateway !== undefined && gateway.family !== parsed.family) throw refused('a gateway of the kind of its route');
    network(parsed);
    to.padded(gateway?.bytes ?? [], 16);
    to.u32(gateway === undefined ? 0 : 1);
    to.u32(0);
  }
}

function flagsOf(kinds: readonly (keyof typeof namespaceFlags)[]): number {
  return kinds.reduce((flags, kind) => {
    if (namespaceFlags[kind] === undefined) throw refused(`kinds of namespaces, not '${kind}'`);
    return flags | namespaceFlags[kind];
  }, 0);
}

function refused(expected: string, remedy = `Give the plan ${expected}.`): CasemateError {
  return new CasemateError('ERR_CASEMATE_INVALID_OPTION', `A launch plan needs ${expected}`, { step: 'plan', remedy });
}

/** Descriptor names and their slots: given ones first, then those that launcher steps make. */
class Slots {
  readonly names = new Map<string, number>();

  constructor(given: readonly string[]) {
    for (const name of given) this.add(name);
  }

  add(name: string): number {
    if (this.names.has(name)) throw refused(`one descriptor named '${name}', not two`);
    if (this.names.size === planFormat.slots) throw refused(`at most ${planFormat.slots} descriptors`);
    const slot = this.names.size;
    this.names.set(name, slot);
    return slot;
  }

  of(name: string): number {
    const slot = this.names.get(name);
    if (slot === undefined) {
      const ways = 'Name it in plan.descriptors, or make it by a step (socketPair, pooled) before it is used.';
      throw refused(`a descriptor named '${name}'`, ways);
    }
    return slot;
  }
}

/** A growing buffer in the machine's byte order (x86-64: little-endian). */
class Writer {
  #bytes = Buffer.alloc(1024);
  length = 0;

  #room(size: number): number {
    const at = this.length;
    while (at + size > this.#bytes.length) this.#bytes = Buffer.concat([this.#bytes], this.#bytes.length * 2);
    this.length += size;
    return at;
  }

  u32(value: number): void {
    if (!Number.isInteger(value) || value < 0 || value > 0xffffffff) throw refused(`32-bit numbers, not ${value}`);
    const at = this.#room(4);
    this.#bytes.writeUInt32LE(value, at);
  }

  u64(value: bigint): void {
    if (value !== BigInt.asUintN(64, value)) throw refused(`64-bit numbers, not ${value}`);
    const at = this.#room(8);
    this.#bytes.writeBigUInt64LE(value, at);
  }

  raw(bytes: Uint8Array): void {
    const at = this.#room(bytes.length);
    this.#bytes.set(bytes, at);
  }

  padded(bytes: ArrayLike<number>, size: number): void {
    const at = this.#room(size);
    this.#bytes.fill(0, at, at + size);
    this.#bytes.set(bytes, at);
  }

  strings(...values: string[]): void {
    for (const value of values) {
      if (value.includes('\0')) throw refused('strings without NUL bytes');
      this.raw(Buffer.from(`${value}\0`));
    }
  }

  text(value: string): void {
    this.u32(Buffer.byteLength(value));
    this.u32(0);
    this.strings(value);
  }

  align(size: number): void {
    this.#room((size - (this.length % size)) % size);
  }

  patchU32(at: number, value: number): void {
    this.#bytes.writeUInt32LE(value, at);
  }

  bytes(): Uint8Array {
    return this.#bytes.subarray(0, this.length);
  }
}
