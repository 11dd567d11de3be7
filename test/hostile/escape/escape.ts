/**
 * test/programs/escape.cpp in the place of the monitor, started by the very plans that launch one, with all layers of
 * the jail, without one of them, with one alone, with none, and without any jail.
 */
import { closeSync, openSync } from 'node:fs';
import { join } from 'node:path';
import { getSystemErrorName } from 'node:util';
import { type LayerName, layerNames } from 'casemate/jail';
import { selinuxStatus } from 'casemate/selinux';
import { packageWithMonitor, tellsOf } from '../../helpers/node.js';
import { program } from '../../helpers/programs.js';
import { run } from '../../helpers/selinux.js';

/** What came of a try: `'open'`, what stopped it otherwise: `'seccomp'` or the name of an error. */
export type Outcome = string;

export interface Tried {
  readonly group: string;
  readonly name: string;
  readonly outcome: Outcome;
}

/** A layer of the jail, or the label, which is one where the host has our policy. */
export type Layer = LayerName | 'selinux';

/** Which layers a jail has; `'host'` is no jail at all, not even a monitor's root and descriptors. */
export type Setting = 'strict' | 'none' | 'host' | { readonly without: Layer } | { readonly only: Layer };

export const settingName = (setting: Setting): string =>
  typeof setting === 'string' ? setting : 'without' in setting ? `without ${setting.without}` : `only ${setting.only}`;

/** Layers that a strict jail has. */
const strictLayers = layerNames.filter((name) => name !== 'timeNamespace' && name !== 'coreScheduling');

/** Whether VMs have labels here. */
export const isLabelled = selinuxStatus().label !== undefined;

/** Layers that a VM has here whose options say nothing of them. */
export const layersHere: readonly Layer[] = [...strictLayers, ...(isLabelled ? (['selinux'] as const) : [])];

/** Two layers are nothing without a third. */
const needsNoNewPrivs: ReadonlySet<Layer> = new Set(['landlock', 'seccomp']);

/** The option `jail` of launch(). */
export function jailOf(setting: Exclude<Setting, 'host'>): object | undefined {
  if (setting === 'strict') return undefined;
  const isOn = (name: Layer): boolean => {
    if (setting === 'none') return false;
    if ('only' in setting) {
      return name === setting.only || (name === 'noNewPrivs' && needsNoNewPrivs.has(setting.only));
    }
    if (setting.without === 'noNewPrivs' && needsNoNewPrivs.has(name)) return false;
    return name !== setting.without;
  };
  const layers = Object.fromEntries(strictLayers.map((name) => [name, isOn(name) ? 'required' : 'off']));
  return { profile: 'custom', layers, selinux: isLabelled && isOn('selinux') ? 'enforcing' : 'off' };
}

let copy: string | undefined;
/** A copy of the package whose monitor is the hostile one. */
export const hostilePackage = (): string => {
  if (copy === undefined) {
    copy = packageWithMonitor(program('escape'));
    // The only way into the domain.
    if (isLabelled) run('chcon', '-t', 'casemate_vmm_exec_t', join(copy, 'prebuilds/linux-x64/casemate-vmm'));
  }
  return copy;
};

/** Of a Node that runs as root, or as somebody else whom root becomes first. */
const through = (uid: number | undefined): string[] => [
  // It may not write where this process's coverage is collected.
  ...(uid === undefined ? [] : ['env', '-u', 'NODE_V8_COVERAGE']),
  ...(uid === undefined ? [] : ['setpriv', `--reuid=${uid}`, `--regid=${uid}`, '--clear-groups']),
  program('escape'),
  'host',
];

/** A script in a Node whose monitors are hostile, on a host with things to be reached; what it tells, once. */
export async function underAttack<T>(script: string, uid?: number): Promise<T> {
  const device = openSync('/dev/kvm', 'r+');
  // Whoever it is, it has the device at descriptor 3.
  const prelude =
    "import { launch as start } from 'casemate';\nconst launch = (options) => start({ kvm: { fd: 3 }, ...options });\n";
  try {
    // To its end: it removes what it has made to be reached.
    return await tellsOf<T>(prelude + script, { through: through(uid), cwd: hostilePackage(), descriptors: [device] });
  } finally {
    closeSync(device);
  }
}

/** What each try comes to in these settings, in one Node. */
export async function tryAll(settings: readonly Setting[], uid?: number): Promise<Tried[][]> {
  const jails = settings.map((setting) => (setting === 'host' ? 'host' : { jail: jailOf(setting) }));
  const script = `
    import { spawnSync } from 'node:child_process';
    import { mkdtempSync, openSync, rmSync, writeFileSync } from 'node:fs';
    import { tmpdir } from 'node:os';
    import { join } from 'node:path';
    import { text } from 'node:stream/consumers';
    const folder = mkdtempSync(join(tmpdir(), 'casemate-escape-'));
    const guest = join(folder, 'guest');
    const path = join(folder, 'secret');
    writeFileSync(guest, 'nobody looks into it');
    writeFileSync(path, 'secret');
    const neighbour = await launch({ guest, args: ['wait'] });
    const targets = [...process.env.CASEMATE_ESCAPE.split(','), 'neighbour=' + neighbour.pid, 'path=' + path];
    const outcomes = [];
    for (const setting of ${JSON.stringify(jails)}) {
      if (setting === 'host') {
        // More than a monitor is ever given: a namespace, the root, a program, a file to write to where its guest's would be.
        const given = [['/proc/self/ns/uts', 'r'], 3, [guest, 'r+'], ['/', 'r'], ['${program('escape')}', 'r'], 'ignore', [path, 'r+']];
        const stdio = ['ignore', 'pipe', 'pipe', ...given.map((each) => (typeof each !== 'object' ? each : openSync(...each)))];
        const { stdout, stderr, status } = spawnSync('${program('escape')}', ['tries', ...targets], { encoding: 'utf8', stdio });
        if (status !== 0) throw new Error(stderr);
        outcomes.push(stdout);
        continue;
      }
      const vm = await launch({ guest, args: ['tries', ...targets], timeoutMs: 60_000, ...setting });
      const output = await text(vm.console);
      const exit = await vm.exited;
      // It hangs up without a word, with code 0.
      if (exit.reason !== 'monitor-crashed' || exit.code !== 0) throw new Error(JSON.stringify({ setting, exit, output }));
      outcomes.push(output);
    }
    await neighbour.kill();
    rmSync(folder, { recursive: true });
    tell(outcomes);`;
  return (await underAttack<string[]>(script, uid)).map(parse);
}

/** What the program says of its tries. */
export function parse(output: string): Tried[] {
  return output
    .split('\n')
    .filter(Boolean)
    .map((line) => {
      const [group = '', name = '', outcome = ''] = line.split('\t');
      return { group, name, outcome: named(outcome) };
    });
}

/** A try that took its process along, or never came back. */
const lost = '100000';

function named(outcome: string): Outcome {
  if (outcome === lost) return 'killed';
  if (outcome === '126') return 'ENOKEY'; // which Node has no name for
  return /^\d+$/.test(outcome) ? getSystemErrorName(-Number(outcome)) : outcome;
}

/** Filters of system calls that hostile code may find itself under: by kind of guest, and by thread. */
export const filters = {
  'The monitor of a bare-metal guest': { linux: false, filter: 'guest', memoryMib: 16 },
  'The same, of one with memory on demand': { linux: false, filter: 'guest', memoryMib: 18 },
  'A Linux guest, the event loop': { linux: true, filter: 'guest', memoryMib: 256 },
  "A Linux guest, a vCPU's thread": { linux: true, filter: 'vcpu', memoryMib: 256 },
  "A Linux guest, a disk's thread": { linux: true, filter: 'disk', memoryMib: 256 },
} as const;

export type FilterName = keyof typeof filters;

export interface Swept {
  /** Numbers that were let through. */
  readonly passed: readonly number[];
  /** How it then ended by the one call that was left out: `exit_group(7)`. */
  readonly code: number | undefined;
}

/** Which numbers each filter lets through where each argument of a call is this one. */
export async function sweepAll(argument: number): Promise<Record<FilterName, Swept>> {
  const each = Object.entries(filters).map(([name, { linux, filter, memoryMib }]) => [
    ...[name, linux, memoryMib],
    ['sweep', filter, argument],
  ]);
  const script = `
    import { text } from 'node:stream/consumers';
    const swept = {};
    for (const [name, linux, memoryMib, args] of ${JSON.stringify(each)}) {
      const guest = Buffer.from('nobody looks into it');
      const machine = linux ? { kernel: guest, cmdline: args.join() } : { guest, args: args.map(String) };
      const vm = await launch({ ...machine, memoryMib });
      const output = await text(vm.console);
      const { reason, code } = await vm.exited;
      if (reason !== 'monitor-crashed') throw new Error(name + ': ' + reason);
      swept[name] = { passed: output.split('\\n').filter(Boolean).map(Number), code };
    }
    tell(swept);`;
  return underAttack(script);
}

/** How a monitor ends that calls by the numbers of another architecture. */
export function callForeign(abi: 'i386' | 'x32'): Promise<{ reason: string; signal?: string }> {
  return underAttack(`
    const vm = await launch({ guest: Buffer.from('nobody looks into it'), args: ['foreign', '${abi}'] });
    tell(await vm.exited);`);
}
