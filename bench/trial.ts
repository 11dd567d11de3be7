/**
 * One trial: a fresh process that launches, measures, prints one line of JSON and ends.
 *
 *   node build/bench/trial.js '{"kind":"launches","launches":25}'
 */
import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, existsSync, readdirSync, readFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { monitorEventLoopDelay, performance } from 'node:perf_hooks';
import type { Readable } from 'node:stream';
import { setTimeout as sleep } from 'node:timers/promises';
// Types alone: the trial `cold` measures what loading the package costs.
import type { CasemateError, Vm } from 'casemate';
import { momentsOf, StepTable } from '#lib/cli/steps.js';
import type { Measured, Metric } from './results.js';
import { execTime } from './steps.js';

/** What nothing but its number of launches is to be said about. */
interface Plain<Kind> {
  readonly kind: Kind;
  readonly launches: number;
}

/** What a trial is asked to measure. */
export type Request =
  | {
      readonly kind: 'launches';
      readonly launches: number;
      readonly memoryMib?: number;
      /** Makes the heap of this process so large, and dirty. */
      readonly heapMib?: number;
      /** So many VMs live while others are launched. */
      readonly alive?: number;
      /** Node's thread stays where the scheduler puts it, and is not kept off processor 0. */
      readonly anywhere?: boolean;
    }
  | { readonly kind: 'cold' }
  | Plain<'cpu'>
  | Plain<'eventLoop'>
  | Plain<'footprint'>
  | Plain<'teardown'>
  | { readonly kind: 'burst'; readonly size: number; readonly bursts: number }
  | { readonly kind: 'rate'; readonly seconds: number }
  | { readonly kind: 'spawn'; readonly launches: number; readonly program: string };

type Of<Kind> = Extract<Request, { readonly kind: Kind }>;

/** The end of a launch goes on in the kernel for a while; the floor waits as long (bench/floor/floor.c). */
const restMs = 20;
/** Launches before the first that is measured: what a server runs all day is compiled, and pages are there. */
const unmeasured = 25;

/** Lists of numbers by metric. */
class Recorder {
  readonly values: Partial<Record<Metric, number[]>> = {};

  add(values: Partial<Record<Metric, number | undefined>>): void {
    for (const [name, value] of Object.entries(values) as [Metric, number | undefined][]) {
      if (value === undefined) continue;
      this.values[name] ??= [];
      // Nanoseconds and bytes are whole; shares are not.
      this.values[name].push(name.endsWith('Share') ? value : Math.round(value));
    }
  }
}

const since = (start: bigint): number => Number(process.hrtime.bigint() - start);

/** User and system time of all threads of this process. */
function ownCpu(): number {
  const { user, system } = process.cpuUsage();
  return (user + system) * 1000;
}

/** CPU time of this thread alone, where this Node can tell. */
function threadCpu(): number | undefined {
  const usage = (process as { threadCpuUsage?(): NodeJS.CpuUsage }).threadCpuUsage?.();
  return usage && (usage.user + usage.system) * 1000;
}

/** CPU time of a process whose threads all sleep, exact to the nanosecond. */
function cpuOf(pid: number): number {
  return readdirSync(`/proc/${pid}/task`)
    .map((thread) => Number(readFileSync(`/proc/${pid}/task/${thread}/schedstat`, 'utf8').split(' ')[0]))
    .reduce((sum, time) => sum + time, 0);
}

/** CPU time of the children that have been reaped. The kernel counts it in hundredths of a second. */
function reapedCpu(): number {
  const fields = readFileSync('/proc/self/stat', 'utf8')
    .replace(/^.*\) /s, '')
    .split(' ');
  return (Number(fields[13]) + Number(fields[14])) * 1e7;
}

const casemate = () => import('casemate');

/** Waits until the pools are full and what was launched before is gone. */
async function rest(): Promise<void> {
  await sleep(restMs);
  await (await casemate()).warmUp();
}

/** Calls a function so many times after some that do not count. */
async function repeat(times: number, call: (measured: boolean) => Promise<void>): Promise<void> {
  for (let i = -unmeasured; i < times; i += 1) await call(i >= 0);
}

async function kill(vm: Vm): Promise<number> {
  const asked = process.hrtime.bigint();
  await vm.kill();
  return since(asked);
}

/**
 * Leaves processor 0 to the launcher and its monitors, as the floor does: what the kernel puts off while a VM is made
 * (callbacks of SRCU) runs there, and a monitor elsewhere waits for it across processors. Node's thread alone is
 * moved, once the launcher has its threads, which would inherit this.
 */
async function leaveProcessor0(): Promise<void> {
  await rest();
  if (availableParallelism() > 1) spawnSync('taskset', ['--pid', '--cpu-list', '1-1023', String(process.pid)]);
}

async function launches({ launches, memoryMib = 16, heapMib = 0, alive = 0, anywhere = false }: Of<'launches'>) {
  const { launch } = await casemate();
  if (!anywhere) await leaveProcessor0();
  const heap = dirtyHeap(heapMib);
  const recorder = new Recorder();
  const table = new StepTable();
  const living: Vm[] = [];
  while (living.length < alive) living.push(await launch({ startPaused: true }));
  await repeat(launches, async (measured) => {
    await rest();
    const cpu = threadCpu();
    const loop = performance.eventLoopUtilization();
    const called = process.hrtime.bigint();
    const promise = launch({ memoryMib });
    const call = since(called);
    const vm = await promise;
    const busy = performance.eventLoopUtilization(loop).active * 1e6;
    const cpuAfter = threadCpu();
    const { timeline } = vm;
    const reaped = await kill(vm);
    if (!measured) return;
    const t1 = Number(timeline.t1 - timeline.t0);
    const t2 = Number(timeline.t2 - timeline.t0);
    const jsCpu = cpu !== undefined && cpuAfter !== undefined ? cpuAfter - cpu : undefined;
    recorder.add({ t1, t2, news: t2 - t1, newsShare: (t2 - t1) / t2, exec: execTime(timeline), reaped });
    recorder.add({ call, busy, busyShare: busy / t2, jsCpu });
    table.add(momentsOf(timeline));
  });
  await Promise.all(living.map((vm) => vm.kill()));
  if (heap.length > heapMib) throw new Error('unreachable: the heap is kept alive until here');
  return { values: recorder.values, steps: table.steps };
}

/** Arrays of numbers on the heap of V8, every page of them written to. */
function dirtyHeap(mib: number): number[][] {
  return Array.from({ length: mib }, (_, index) => new Array<number>(2 ** 17).fill(index + 0.5));
}

/** The first launch of a process, with nothing prepared. */
async function cold() {
  const started = process.hrtime.bigint();
  const { launch } = await casemate();
  const load = since(started);
  const vm = await launch();
  const fromStart = performance.now() * 1e6;
  const { timeline } = vm;
  const t1 = Number(timeline.t1 - timeline.t0);
  const t2 = Number(timeline.t2 - timeline.t0);
  const table = new StepTable();
  table.add(momentsOf(timeline));
  await vm.kill();
  return { values: { t1: [t1], t2: [t2], load: [load], fromStart: [fromStart] }, steps: table.steps };
}

/** What a launch costs the machine. The guest is paused at its first hypercall, so that nothing else is counted. */
async function cpu({ launches }: Pick<Plain<string>, 'launches'>) {
  const { launch } = await casemate();
  const recorder = new Recorder();
  let whole = 0;
  await repeat(launches, async (measured) => {
    await rest();
    if (whole === 0 && measured) whole = -ownCpu() - reapedCpu();
    const before = ownCpu();
    const vm = await launch({ startPaused: true });
    const cpuNode = ownCpu() - before;
    const cpuMonitor = cpuOf(vm.pid);
    await vm.kill();
    if (measured) recorder.add({ cpu: cpuNode + cpuMonitor, cpuNode, cpuMonitor });
  });
  await rest();
  recorder.add({ cpuCycle: (whole + ownCpu() + reapedCpu()) / launches });
  return { values: recorder.values };
}

/** How long the event loop stands still at most, by Node's own measure: a timer that is to fire every millisecond. */
async function eventLoop({ launches }: Pick<Plain<string>, 'launches'>) {
  const { launch } = await casemate();
  const recorder = new Recorder();
  const resolution = 1;
  const delay = monitorEventLoopDelay({ resolution });
  const late = () => Math.max(0, delay.max - resolution * 1e6);
  delay.enable();
  await repeat(launches, async (measured) => {
    await rest();
    delay.reset();
    await sleep(5);
    const blockIdle = late();
    delay.reset();
    const vm = await launch();
    // The timer's next turn, or a block until just now goes unseen.
    await sleep(2);
    const block = late();
    await vm.kill();
    if (measured) recorder.add({ block, blockIdle });
  });
  delay.disable();
  return { values: recorder.values };
}

/** Many at once; times count from the call of the first. */
async function burst({ size, bursts }: Of<'burst'>) {
  const { launch } = await casemate();
  const recorder = new Recorder();
  await rest();
  for (let i = -1; i < bursts; i += 1) {
    const begun = process.hrtime.bigint();
    const vms = await Promise.all(Array.from({ length: size }, () => launch({ startPaused: true })));
    const timelines = vms.map(({ timeline }) => timeline);
    await Promise.all(vms.map((vm) => vm.kill()));
    if (i >= 0) {
      for (const { t1, t2 } of timelines) recorder.add({ t1: Number(t1 - begun), t2: Number(t2 - begun) });
    }
    await sleep(size * 3);
    await rest();
  }
  return { values: recorder.values };
}

/** Launches and kills for a while, as fast as it goes. */
async function rate({ seconds }: Of<'rate'>) {
  const { launch } = await casemate();
  await rest();
  await (await launch()).kill();
  const begun = process.hrtime.bigint();
  let done = 0;
  const worker = async () => {
    while (since(begun) < seconds * 1e9) {
      await (await launch()).kill();
      done += 1;
    }
  };
  await Promise.all(Array.from({ length: 4 }, worker));
  return { values: { perSecond: [(done * 1e9) / since(begun)] } };
}

/** What a monitor needs for itself: its part of the pages that it has mapped, without the guest's memory. */
async function footprint({ launches }: Pick<Plain<string>, 'launches'>) {
  const { launch } = await casemate();
  const recorder = new Recorder();
  const memoryMib = 64;
  for (let i = 0; i < launches; i += 1) {
    const vm = await launch({ startPaused: true, memoryMib });
    const mappings = readMappings(vm.pid);
    const guest = mappings.filter(({ size }) => size === memoryMib * 2 ** 20);
    if (guest.length !== 1) throw new Error("The guest's memory is not to be told from the monitor's");
    recorder.add({ monitorMemory: mappings.reduce((sum, { pss }) => sum + pss, 0) - (guest[0]?.pss ?? 0) });
    await vm.kill();
  }
  return { values: recorder.values };
}

/** The mappings of a process. Anonymous ones that adjoin are one: advice to the kernel splits a guest's memory. */
function readMappings(pid: number): { readonly size: number; readonly pss: number }[] {
  const mappings: { end: string | undefined; size: number; pss: number }[] = [];
  for (const text of readFileSync(`/proc/${pid}/smaps`, 'utf8').split(/^(?=[0-9a-f]+-[0-9a-f]+ )/m)) {
    const [, start, end, path] = /^(\w+)-(\w+) \S+ \S+ \S+ \d+ *(.*)/.exec(text) ?? [];
    const bytes = (name: string) => Number(new RegExp(`^${name}: +(\\d+) kB`, 'm').exec(text)?.[1]) * 1024;
    const [size, pss] = [bytes('Size'), bytes('Pss')];
    const before = mappings.at(-1);
    if (path === '' && before?.end === start && before !== undefined) {
      before.end = end;
      before.size += size;
      before.pss += pss;
    } else {
      mappings.push({ end: path === '' ? end : undefined, size, pss });
    }
  }
  return mappings;
}

/**
 * Until nothing is left: a network interface of the host, whose other end lies in the VM's network namespace, goes
 * with that namespace, the last thing of a VM to go.
 */
async function teardown({ launches }: Pick<Plain<string>, 'launches'>) {
  const { launch } = await casemate();
  const { runSteps, steps } = await import('casemate/jail');
  const recorder = new Recorder();
  for (let i = 0; i < launches; i += 1) {
    await rest();
    const { net } = await runSteps([steps.unshare('net')], { keep: ['net'] });
    const name = `cm${process.pid}-${i}`.slice(-15);
    const peer = ['type', 'veth', 'peer', 'name', 'eth0', 'netns', `/proc/${process.pid}/fd/${net}`];
    const { status, stderr } = spawnSync('ip', ['link', 'add', name, ...peer], { encoding: 'utf8' });
    if (status !== 0) throw new Error(`ip link add: ${stderr}`);
    const vm = await launch({ jail: { networkNamespace: { fd: net } } });
    closeSync(net);
    const asked = process.hrtime.bigint();
    await vm.kill();
    const reaped = since(asked);
    while (existsSync(`/sys/class/net/${name}`)) await sleep(1);
    recorder.add({ reaped, gone: since(asked) });
  }
  return { values: recorder.values };
}

/** What Node itself does to start a program: no jail, no VM. */
async function spawnProgram({ launches, program }: Of<'spawn'>) {
  const recorder = new Recorder();
  await repeat(launches, async (measured) => {
    await sleep(restMs);
    const loop = performance.eventLoopUtilization();
    const t0 = process.hrtime.bigint();
    const child = spawn(program, { stdio: ['ignore', 'ignore', 'ignore', 'pipe'] });
    const call = since(t0);
    const exited = once(child, 'exit');
    await once(child.stdio[3] as Readable, 'data');
    const t2 = since(t0);
    const busy = performance.eventLoopUtilization(loop).active * 1e6;
    await exited;
    if (measured) recorder.add({ t2, call, busy, busyShare: busy / t2, ended: since(t0) });
  });
  return { values: recorder.values };
}

function measure(request: Request): Promise<Measured> {
  switch (request.kind) {
    case 'launches':
      return launches(request);
    case 'cold':
      return cold();
    case 'cpu':
      return cpu(request);
    case 'eventLoop':
      return eventLoop(request);
    case 'footprint':
      return footprint(request);
    case 'teardown':
      return teardown(request);
    case 'burst':
      return burst(request);
    case 'rate':
      return rate(request);
    case 'spawn':
      return spawnProgram(request);
  }
}

try {
  process.stdout.write(`${JSON.stringify(await measure(JSON.parse(process.argv[2] ?? '') as Request))}\n`);
} catch (error) {
  const { message, remedy } = error as Partial<CasemateError>;
  process.stderr.write(`${message}${remedy === undefined ? '' : ` (${remedy})`}\n`);
  process.exit(1); // VMs that still live go with this process
}
