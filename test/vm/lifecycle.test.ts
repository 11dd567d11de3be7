/** A VM from launch() to its end: what it leaves behind, states, pausing, aborting, events, tracing. */
import { channel, subscribe, unsubscribe } from 'node:diagnostics_channel';
import { getEventListeners, getMaxListeners, once } from 'node:events';
import { text } from 'node:stream/consumers';
import { setTimeout as delay, setImmediate as immediate } from 'node:timers/promises';
import { CasemateError, type ExitMessage, type LaunchMessage, launch, type Vm, type VmExit } from 'casemate';
import { layerNames } from 'casemate/jail';
import { caller } from '#lib/jail/launcher.js';
import { moments } from '#lib/jail/native.js';
import { stampNames } from '#lib/vm/wire.js';
import { flat, guest, stillborn } from '../helpers/guests.js';
import { requires } from '../helpers/index.js';
import { leaks } from '../helpers/leaks.js';
import { isAlive, readProc, within } from '../helpers/proc.js';
import { refused, run, timedOut } from '../helpers/vm.js';

const test = requires('kvm');

// ---- What is left behind: before the other tests, which share this process ---------------------------

test.serial('a hundred launches in a row leave nothing behind, whether their consoles are read or not', async (t) => {
  const launchOne = async (i: number) => {
    const vm = await launch({ guest: guest('info'), args: [`number ${i}`] });
    if (i % 2 === 0) t.regex(await text(vm.console), new RegExp(`^argument number ${i}$`, 'm'));
    t.deepEqual(await vm.exited, { reason: 'exit', code: 0 });
  };
  await launchOne(0); // what is opened once per process
  const left = await leaks(async () => {
    for (let i = 1; i <= 100; i += 1) await launchOne(i);
  });
  t.deepEqual(left, []);
});

test.serial('thirty-two VMs live side by side, each with a console of its own, and leave nothing behind', async (t) => {
  const left = await leaks(async () => {
    const vms = await Promise.all(Array.from({ length: 32 }, () => launch({ guest: guest('echo') })));
    t.is(new Set(vms.map(({ pid }) => pid)).size, 32);
    t.is(new Set(vms.map(({ id }) => id)).size, 32);
    t.true(vms.every(({ state, pid }) => state === 'running' && isAlive(pid)));
    for (const vm of vms) vm.console.end(`I am ${vm.id}`);
    for (const vm of vms) {
      t.is(await text(vm.console), `I am ${vm.id}`);
      t.deepEqual(await vm.exited, { reason: 'exit', code: 0 });
    }
  });
  t.deepEqual(left, []);
});

test.serial('a launch that fails, at whatever point, leaves nothing behind', async (t) => {
  const left = await leaks(async () => {
    await refused(t, { guest: '/nonexistent' }, 'ERR_CASEMATE_FILE');
    await refused(t, { guest: guest('exit'), input: '/nonexistent' }, 'ERR_CASEMATE_FILE');
    await refused(t, { guest: flat('7f454c46'), format: 'elf' }, 'ERR_CASEMATE_GUEST_IMAGE');
    await refused(t, { guest: stillborn }, 'ERR_CASEMATE_EARLY_EXIT');
    await refused(t, { guest: guest('silent'), startTimeoutMs: 30 }, 'ERR_CASEMATE_TIMEOUT');
  });
  t.deepEqual(left, []);
});

test.serial('a launch aborted at any moment rejects with an AbortError, or gives a VM that is killed', async (t) => {
  const points = [() => Promise.resolve(), () => immediate(), () => delay(0), () => delay(1), () => delay(2)];
  const left = await leaks(async () => {
    for (let round = 0; round < 50; round += 1) {
      const controller = new AbortController();
      const ended = launch({ guest: guest('spin'), signal: controller.signal }).then(
        (vm) => vm.exited,
        (error: Error) => error,
      );
      await points[round % points.length]?.();
      controller.abort();
      const end = await ended;
      if (end instanceof Error) t.like(end, { name: 'AbortError', code: 'ABORT_ERR' });
      else t.deepEqual(end, { reason: 'killed' });
      t.is(getEventListeners(controller.signal, 'abort').length, 0);
    }
  });
  t.deepEqual(left, []);
});

test.serial('many launches aborted at once all reject with the reason, and leave nothing behind', async (t) => {
  const left = await leaks(async () => {
    const controller = new AbortController();
    const launches = Array.from({ length: 40 }, () => launch({ guest: guest('spin'), signal: controller.signal }));
    controller.abort(new Error('enough'));
    for (const launched of launches) {
      const error = await t.throwsAsync(launched, { name: 'AbortError', code: 'ABORT_ERR' });
      t.like(error?.cause, { message: 'enough' });
    }
  });
  t.deepEqual(left, []);
});

/** Lets the launcher and the monitor get far while Node hears nothing of it: then it hears of all of it at once. */
function lookAway(): void {
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 200);
}

test.serial("'exit' comes to whoever listens as soon as launch() has resolved, however short the guest", async (t) => {
  const launched = launch({ guest: guest('exit'), args: ['6'] });
  lookAway();
  const vm = await launched;
  t.deepEqual(await once(vm, 'exit'), [{ reason: 'exit', code: 6 }]);
});

test.serial('a launch aborted before it resolves rejects, though its guest runs already', async (t) => {
  const controller = new AbortController();
  const launched = launch({ guest: guest('spin'), signal: controller.signal });
  lookAway();
  controller.abort();
  await t.throwsAsync(launched, { name: 'AbortError', code: 'ABORT_ERR' });
});

test.serial('what was asked for and answered is done, though the VM has ended when Node hears of both', async (t) => {
  await using vm = await launch({ guest: guest('exit'), startPaused: true });
  const resumed = vm.resume();
  await null; // it is a turn of its own that asks
  // A launch that is done is seen to first, and leaves what else has happened in another order.
  const other = launch({ guest: guest('exit') });
  lookAway();
  await resumed;
  await (await other).exited;
  t.deepEqual(await vm.exited, { reason: 'exit', code: 0 });
});

// ---- Aborting ------------------------------------------------------------------------------------------

test.serial('one signal ends any number of VMs, without a warning about its listeners', async (t) => {
  const warnings: string[] = [];
  const note = ({ name }: Error) => warnings.push(name);
  process.on('warning', note);
  t.teardown(() => process.off('warning', note));
  const controller = new AbortController();
  t.teardown(() => controller.abort());
  const { signal } = controller;
  const vms = await Promise.all(Array.from({ length: 64 }, () => launch({ startPaused: true, signal })));
  t.is(getEventListeners(signal, 'abort').length, 1);
  controller.abort();
  for (const vm of vms) t.deepEqual(await vm.exited, { reason: 'killed' });
  await immediate();
  t.is(getEventListeners(signal, 'abort').length, 0);
  t.false(warnings.includes('MaxListenersExceededWarning'));
  t.is(getMaxListeners(signal), getMaxListeners(new AbortController().signal));
});

test('a launch whose signal is aborted already creates nothing, and says why', async (t) => {
  const reason = new Error('changed my mind');
  const error = await t.throwsAsync(launch({ guest: '/nonexistent', signal: AbortSignal.abort(reason) }));
  t.like(error, { name: 'AbortError', code: 'ABORT_ERR' });
  t.is(error?.cause, reason);
});

test('a signal aborted by a subscriber of the tracing channel is heard', async (t) => {
  const name = 'aborted by its subscriber';
  const controller = new AbortController();
  const abort = (message: unknown) => {
    if ((message as LaunchMessage).options.args[0] === name) controller.abort();
  };
  subscribe('tracing:casemate:launch:start', abort);
  t.teardown(() => unsubscribe('tracing:casemate:launch:start', abort));
  await t.throwsAsync(launch({ guest: guest('spin'), name, signal: controller.signal }), { name: 'AbortError' });
});

test('a signal aborted while the VM runs kills it; one aborted later does nothing', async (t) => {
  const controller = new AbortController();
  const vm = await launch({ guest: guest('spin'), signal: controller.signal });
  controller.abort();
  t.deepEqual(await vm.exited, { reason: 'killed' });

  const late = new AbortController();
  const { exit } = await run({ guest: guest('exit'), args: ['4'], signal: late.signal });
  t.is(getEventListeners(late.signal, 'abort').length, 0);
  late.abort();
  t.deepEqual(exit, { reason: 'exit', code: 4 });
});

// ---- Pausing -------------------------------------------------------------------------------------------

/** Nanoseconds that the monitor, its vCPU included, has been on a processor; Documentation/scheduler/sched-stats. */
const ranFor = (vm: Vm) => Number(readProc(vm.pid, 'schedstat').split(' ')[0]);

/** Whether the monitor, once it sleeps, is not on a processor for a while. */
async function standsStill(vm: Vm): Promise<boolean> {
  if (!(await within(10_000, () => / S /.test(readProc(vm.pid, 'stat'))))) return false;
  const before = ranFor(vm);
  await delay(50);
  return ranFor(vm) === before;
}

async function runsOn(vm: Vm): Promise<boolean> {
  const before = ranFor(vm);
  return within(10_000, () => ranFor(vm) > before);
}

const closed = { instanceOf: CasemateError, code: 'ERR_CASEMATE_CLOSED' } as const;

test('a spinning guest stands still while it is paused, and goes on', async (t) => {
  await using vm = await launch({ guest: guest('spin') });
  for (let i = 0; i < 3; i += 1) {
    await vm.pause();
    t.is(vm.state, 'paused');
    t.true(await standsStill(vm));
    await vm.resume();
    t.is(vm.state, 'running');
    t.true(await runsOn(vm));
  }
});

test('a guest that waits for input is paused, and reads only when it goes on', async (t) => {
  await using vm = await launch({ guest: guest('echo') });
  await vm.pause();
  vm.console.end('hello');
  t.true(await standsStill(vm));
  t.is(vm.console.read(), null);
  await vm.resume();
  t.is(await text(vm.console), 'hello');
});

test('a guest that waits for its reader is paused, and writes on only when it goes on', async (t) => {
  await using vm = await launch({ guest: guest('flood'), args: ['8'] });
  await vm.pause();
  let size = 0;
  vm.console.on('data', (chunk: Buffer) => {
    size += chunk.length;
  });
  t.true(await standsStill(vm));
  t.true(size < 2 ** 20, `${size} bytes were in the socket`);
  await vm.resume();
  await once(vm.console, 'end');
  t.is(size, 8 * 2 ** 20);
  t.deepEqual(await vm.exited, { reason: 'exit', code: 0 });
});

test('pause() of a paused VM and resume() of a running one do nothing', async (t) => {
  await using vm = await launch({ guest: guest('spin') });
  const seen: string[] = [];
  vm.on('paused', () => seen.push(`paused ${vm.state}`)).on('resumed', () => seen.push(`resumed ${vm.state}`));
  await vm.resume();
  await Promise.all([vm.pause(), vm.pause()]);
  await vm.pause();
  await Promise.all([vm.resume(), vm.resume()]);
  t.deepEqual(seen, ['paused paused', 'resumed running']);
});

test('calls of pause() and resume() take effect in their order', async (t) => {
  await using vm = await launch({ guest: guest('spin') });
  const seen: string[] = [];
  vm.on('paused', () => seen.push('paused')).on('resumed', () => seen.push('resumed'));
  await Promise.all([vm.pause(), vm.resume(), vm.pause(), vm.resume(), vm.pause()]);
  t.deepEqual(seen, ['paused', 'resumed', 'paused', 'resumed', 'paused']);
  t.is(vm.state, 'paused');
});

test('a VM that has ended can be neither paused nor resumed nor asked for evidence', async (t) => {
  const vm = await launch({ guest: guest('exit') });
  await vm.exited;
  await t.throwsAsync(vm.pause(), closed);
  await t.throwsAsync(vm.resume(), closed);
  await t.throwsAsync(vm.evidence(), closed);
});

test('a pause that races with the end of the guest is made, or refused as of a VM that has ended', async (t) => {
  for (let i = 0; i < 20; i += 1) {
    const vm = await launch({ guest: guest('echo') });
    vm.console.end();
    if (i % 2 === 1) await immediate();
    const outcome = await vm.pause().then(
      () => vm.resume().catch((error: unknown) => error),
      (error: unknown) => error,
    );
    if (outcome !== undefined) t.like(outcome, { code: 'ERR_CASEMATE_CLOSED' });
    t.deepEqual(await vm.exited, { reason: 'exit', code: 0 });
  }
});

test('kill() ends a paused VM, and the calls that wait for it', async (t) => {
  const vm = await launch({ guest: guest('spin') });
  await vm.pause();
  t.deepEqual(await vm.kill(), { reason: 'killed' });

  const other = await launch({ guest: guest('spin') });
  other.kill();
  await t.throwsAsync(other.pause(), closed);
});

test('a guest that starts paused does nothing before it is resumed', async (t) => {
  await using vm = await launch({ guest: guest('flood'), args: ['1'], startPaused: true });
  t.is(vm.state, 'paused');
  t.true(await standsStill(vm));
  t.is(vm.console.read(), null);
  const [output] = await Promise.all([vm.console.toArray(), once(vm, 'resumed'), vm.resume()]);
  t.is(Buffer.concat(output).length, 2 ** 20);
  t.deepEqual(await vm.exited, { reason: 'exit', code: 0 });
});

test('a VM that starts paused can be killed', async (t) => {
  const vm = await launch({ guest: guest('exit'), startPaused: true });
  t.deepEqual(await vm.kill(), { reason: 'killed' });
});

test('the time of a paused VM runs', async (t) => {
  t.deepEqual(await timedOut({ guest: guest('exit'), startPaused: true }), { reason: 'timeout' });
});

// ---- Events and scopes ---------------------------------------------------------------------------------

test("'exit' comes once, and last", async (t) => {
  for (let i = 0; i < 20; i += 1) {
    const vm = await launch({ guest: guest('exit'), args: ['6'] });
    const seen: VmExit[] = [];
    vm.on('exit', (exit) => seen.push(exit));
    t.deepEqual(await once(vm, 'exit'), [{ reason: 'exit', code: 6 }]);
    t.is(vm.state, 'exited');
    await immediate();
    t.deepEqual(seen, [await vm.exited]);
  }
});

test('the end of an `await using` scope is the end of the VM', async (t) => {
  let left: Vm;
  {
    await using vm = await launch({ guest: guest('spin') });
    left = vm;
    t.true(isAlive(vm.pid));
  }
  t.is(left.state, 'exited');
  t.false(isAlive(left.pid));
  t.true(left.console.destroyed);
  t.deepEqual(await left.exited, { reason: 'killed' });
});

// ---- Timeline and evidence -----------------------------------------------------------------------------

test('the timeline has every step, named, in order, between the call and its resolution', async (t) => {
  const before = process.hrtime.bigint();
  await using vm = await launch({ guest: guest('spin') });
  const after = process.hrtime.bigint();
  const { t0, t1, t2, steps } = vm.timeline;
  t.true(before <= t0 && t0 <= t1 && t1 <= t2 && t2 <= after);
  t.true(steps.every(({ at, durationNs }) => at >= t0 && at <= t2 && durationNs >= 0));
  t.deepEqual(
    [...steps].sort((left, right) => Number(left.at - right.at)),
    [...steps],
  );
  const namesOf = (where: string) => steps.filter((step) => step.where === where).map(({ name }) => name);
  t.deepEqual(namesOf('node'), ['submit', 'resolve']);
  t.deepEqual(namesOf('monitor'), [...stampNames]);
  t.is(steps.find(({ name, where }) => where === 'monitor' && name === 'guest')?.at, t1);
  const launcher = namesOf('launcher');
  // The launcher of an ordinary user waits for the execve, too.
  const vfork = caller().rootless ? ['vfork'] : [];
  const last = ['clone3', ...vfork, 'jailed', 'readBack', 'release'];
  t.deepEqual([launcher[0], ...launcher.slice(-last.length)], ['take', ...last]);
  t.true(launcher.slice(1, -last.length).every((name) => name === 'socketPair' || name === 'pooled'));
  t.is(moments.length, 7, 'every moment of a launch is one of the steps above');
  const child = namesOf('child');
  t.is(child.at(-1), 'capabilities');
  const called = steps.findLast(({ where }) => where === 'child');
  const begun = steps.find(({ where }) => where === 'monitor');
  t.is(begun?.durationNs, Number((begun?.at ?? 0n) - (called?.at ?? 0n)));
  for (const name of ['setns', 'rlimit', 'descriptors', 'ids', 'securebits', 'dropBounding']) {
    t.true(child.includes(name), name);
  }
});

test('the evidence of a running VM is as asked for, layer by layer, SELinux off included', async (t) => {
  await using vm = await launch({ guest: guest('spin'), jail: { selinux: 'off' } });
  const evidence = await vm.evidence();
  t.is(evidence.pid, vm.pid);
  t.deepEqual(
    evidence.layers.filter(({ ok }) => !ok),
    [],
  );
  t.true(evidence.ok);
  const seen = evidence.layers.map(({ layer }) => layer);
  t.deepEqual(
    layerNames.filter((layer) => !seen.includes(layer) && layer !== 'coreScheduling'),
    [],
  );
  t.like(
    evidence.layers.find(({ layer }) => layer === 'selinux'),
    { asked: 'off', observed: 'off' },
  );
});

// ---- Tracing -------------------------------------------------------------------------------------------

test('the tracing channels tell of a launch, its end, and of one that failed', async (t) => {
  const name = 'traced';
  const told: [string, Partial<LaunchMessage & ExitMessage>][] = [];
  const ids = new Set<string>();
  for (const event of [
    'tracing:casemate:launch:start',
    'tracing:casemate:launch:asyncEnd',
    'tracing:casemate:launch:error',
    'casemate:exit',
  ]) {
    const listener = (message: unknown) => {
      const given = message as LaunchMessage & ExitMessage;
      if (given.options?.args[0] === name) ids.add(given.id);
      if (ids.has(given.id)) told.push([event.replace(/^.*:/, ''), given]);
    };
    subscribe(event, listener);
    t.teardown(() => unsubscribe(event, listener));
  }
  t.true(channel('casemate:exit').hasSubscribers);

  const vm = await launch({ guest: guest('exit'), args: ['2'], name });
  await once(vm, 'exit');
  t.deepEqual(
    told.map(([event]) => event),
    ['start', 'asyncEnd', 'exit'],
  );
  t.true(told.every(([, { id }]) => id === vm.id));
  t.is(told[0]?.[1].options?.memoryMib, 16);
  t.is(told[1]?.[1].vm, vm);
  t.is(told[2]?.[1].vm, vm);
  t.deepEqual(told[2]?.[1].exit, { reason: 'exit', code: 2 });

  told.length = 0;
  const error = await refused(t, { guest: '/nonexistent', name }, 'ERR_CASEMATE_FILE');
  t.deepEqual(
    told.map(([event]) => event),
    ['start', 'error'],
  );
  t.is(told[1]?.[1].error, error);
});
