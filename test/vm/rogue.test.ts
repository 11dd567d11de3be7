/**
 * Monitors in somebody else's hands. Node's side is the library as it is built; in the place of the monitor stands
 * test/programs/rogue.c, which does what it is told by the guest's arguments.
 */
import { type ExecutionContext, requires } from '../helpers/index.js';
import { packageWithMonitor } from '../helpers/node.js';
import { program } from '../helpers/programs.js';
import { type Ended, script } from '../helpers/scripts.js';

const { serial: test } = requires('kvm', 'programs');

let copy: string | undefined;

/** What each script finds: `meet(acts)` launches a rogue and says how that ended, and whether the rogue is gone. */
const prelude = `
const monitors = () => childrenOf('self').filter((pid) => ifThere(() => readProc(pid, 'comm')) === 'casemate-vmm\\n');
async function meet(acts, options, then = (vm) => vm.exited) {
  let vm;
  try {
    vm = await launch({ guest: guest('spin'), args: acts, timeoutMs: 20_000, ...options });
    const exit = await then(vm);
    return { exit, state: vm.state, alive: monitors() };
  } catch (error) {
    const { code, step, message, cause } = error;
    return { code, step, message, cause, alive: monitors() };
  } finally {
    await vm?.[Symbol.asyncDispose]();
  }
}
`;

/** What a script tells that meets a rogue, twice: it must be the same, and the second time must leave nothing. */
async function met(t: ExecutionContext, source: string): Promise<Record<string, unknown>> {
  copy ??= packageWithMonitor(program('rogue'));
  const body = `${prelude}
const outcomes = [];
const left = await added(async () => outcomes.push(await ${source}));
tell([...outcomes, left]);`;
  const ended: Ended = await script(body, undefined, copy);
  t.deepEqual({ code: ended.code, signal: ended.signal, errors: ended.errors }, { code: 0, signal: null, errors: '' });
  const [first, second, left] = ended.told[0] as [Record<string, unknown>, Record<string, unknown>, unknown];
  t.deepEqual(second, first);
  t.deepEqual(left, []);
  const { alive, ...rest } = first;
  t.deepEqual(alive, []);
  return rest;
}

/** A call of meet(), as source. */
const meet = (acts: readonly string[], options: object = {}, then = '(vm) => vm.exited') =>
  `meet(${JSON.stringify(acts)}, ${JSON.stringify(options)}, ${then})`;

/** As the real one does up to its release. */
const jailed = ['noNewPrivs', 'seccomp', 'jailed'];
const released = [...jailed, 'command'];
const rung = [...released, 'doorbell'];

const crashed = { exit: { reason: 'monitor-crashed' }, state: 'exited' };

const breaches: readonly (readonly [what: string, act: string, error: string])[] = [
  ['is jailed again', 'jailed', 'a message that is none of the protocol'],
  ['says that it is paused, unasked', 'paused', "an unasked 'paused'"],
  ['says that it runs again, unasked', 'resumed', "an unasked 'resumed'"],
  ['sends a type that is none', 'unknown-type', 'a message that is none of the protocol'],
  ['sends a single byte', 'byte', 'a message that is none of the protocol'],
  ['sends a doorbell that is cut short', 'short-doorbell', 'a message that is none of the protocol'],
  ['lies about the size of its message', 'lying-size', 'a message that is none of the protocol'],
  ['sends more than any message has', 'long', 'a message that is none of the protocol'],
  ['sends a message of 128 KiB', 'huge', 'a message that is none of the protocol'],
  ['ends for a reason that is none', 'exited-unknown-reason', 'a message that is none of the protocol'],
  ['ends with a code that no guest has', 'exited-huge-code', 'a message that is none of the protocol'],
  ['fails at a step that is none', 'failed-nowhere', 'a message that is none of the protocol'],
  ['fails with a text that does not end', 'failed-without-end', 'a message that is none of the protocol'],
];

for (const [what, act, error] of breaches) {
  test(`a monitor that ${what} is killed, before its guest has rung and after`, async (t) => {
    t.like(await met(t, meet([...released, act])), {
      code: 'ERR_CASEMATE_PROTOCOL',
      step: 'control',
      message: `The monitor sent ${error}; it was killed`,
    });
    t.deepEqual(await met(t, meet([...rung, act])), crashed);
  });
}

test('a second doorbell ends the VM', async (t) => {
  t.deepEqual(await met(t, meet([...rung, 'doorbell'])), crashed);
});

test('a monitor that says of its end what it likes is killed at the second word', async (t) => {
  for (const last of ['exited', 'failed']) {
    t.like(await met(t, meet([...released, 'exited', last])), { code: 'ERR_CASEMATE_PROTOCOL' }, last);
    t.deepEqual(await met(t, meet([...rung, 'exited', last])), crashed, last);
  }
  t.deepEqual(await met(t, meet([...rung, 'exited', 'doorbell'])), crashed);
});

test('a monitor that answers something else than it was asked is killed', async (t) => {
  const pause = "(vm) => vm.pause().then(() => 'paused', ({ code }) => vm.exited.then((exit) => [code, exit]))";
  const refused = { exit: ['ERR_CASEMATE_CLOSED', { reason: 'monitor-crashed' }], state: 'exited' };
  t.deepEqual(await met(t, meet([...rung, 'command', 'resumed'], {}, pause)), refused);
  t.deepEqual(await met(t, meet([...rung, 'command', 'byte'], {}, pause)), refused);
});

test('a monitor that answers twice is killed', async (t) => {
  const pause = '(vm) => vm.pause().then(() => vm.exited)';
  t.deepEqual(await met(t, meet([...rung, 'command', 'paused', 'paused'], {}, pause)), crashed);
});

test('a monitor that floods Node is killed, though each message alone would be good', async (t) => {
  // Else Node would read for as long as there is something to be read, and its timers would wait.
  t.deepEqual(await met(t, meet([...rung, 'flood'])), crashed);
  t.like(await met(t, meet([...released, 'flood'])), { code: 'ERR_CASEMATE_PROTOCOL' });
});

/** Of a VM with streams: what it says of them. Its acts are the words of the command line. */
const meetStreams = (acts: readonly string[], then?: string) =>
  `meet([], { kernel: guest('spin'), vsock: true, guest: undefined, args: undefined, cmdline: '${acts.join()}' }${then === undefined ? '' : `, ${then}`})`;

const [requested, connected, refused, ended, closed] = [16, 17, 18, 19, 20];
const ofGuest = 0x8000_0000;

for (const [what, acts] of [
  ['tells of a stream that there is not', [`stream ${closed} 7 0`]],
  [
    'asks twice with one id',
    ['command', `stream ${requested} ${ofGuest} 80`, 'command', `stream ${requested} ${ofGuest} 80`],
  ],
  ["asks with an id of Node's", [`stream ${requested} 7 80`]],
  ['asks with an id that is too large', [`stream ${requested} ${ofGuest + 1024} 80`]],
  ['answers what nobody has asked', [`stream ${connected} 2 0`]],
  ['answers a connection twice', ['command', `stream ${connected} 1 0`, `stream ${refused} 1 0`]],
  ['ends a stream before it is connected', ['command', `stream ${ended} 1 0`]],
  ['ends a stream twice', ['command', `stream ${connected} 1 0`, `stream ${ended} 1 0`, `stream ${ended} 1 0`]],
  ['closes a stream for no reason that there is', ['command', `stream ${connected} 1 0`, `stream ${closed} 1 5`]],
  ['closes a stream twice', ['command', `stream ${connected} 1 0`, `stream ${closed} 1 0`, `stream ${closed} 1 0`]],
] as const) {
  test(`a monitor that ${what} is killed`, async (t) => {
    const use = `(vm) => {
      vm.listen(80).on('connection', (stream) => stream.on('error', () => {}));
      vm.connect(1).then((stream) => stream.on('error', () => {}), () => {});
      return vm.exited;
    }`;
    t.deepEqual(await met(t, meetStreams([...rung, ...acts], use)), crashed);
  });
}

test('a monitor without a vsock device that tells of streams is killed', async (t) => {
  t.deepEqual(await met(t, meet([...rung, `stream ${closed} 1 0`])), crashed);
});

test('a monitor that asks on and on leaves Node its time, and is ended like any other', async (t) => {
  const acts = [...rung, `stream-flood ${requested} ${ofGuest} 80`];
  const use = `async (vm) => {
    for (let i = 0; i < 20; i += 1) await delay(1);
    return vm.kill();
  }`;
  t.deepEqual(await met(t, meetStreams(acts, use)), { exit: { reason: 'killed' }, state: 'exited' });
});

test('a monitor that is let go and does nothing more runs out of its time', async (t) => {
  for (const acts of [released, jailed]) {
    const within = `(startTimeoutMs) => meet(${JSON.stringify(acts)}, { startTimeoutMs })`;
    const outcome = await met(t, `patiently(${within}, ({ step }) => step !== 'guest')`);
    t.like(outcome, { code: 'ERR_CASEMATE_TIMEOUT', step: 'guest' }, acts.join());
  }
});

test('a monitor that never says that it is jailed runs out of its time', async (t) => {
  t.like(await met(t, meet([], { startTimeoutMs: 300 })), { code: 'ERR_CASEMATE_TIMEOUT', step: 'monitor' });
});

test('a monitor that hangs up before it is jailed is killed at once', async (t) => {
  t.like(await met(t, meet(['hang-up'])), { code: 'ERR_CASEMATE_MONITOR', step: 'monitor' });
});

test('a monitor that says something else than that it is jailed is never let go', async (t) => {
  for (const act of ['doorbell', 'paused', 'byte', 'nothing', 'huge']) {
    const outcome = await met(t, meet(['noNewPrivs', 'seccomp', act]));
    t.like(outcome, { code: 'ERR_CASEMATE_MONITOR', step: 'monitor' }, act);
  }
});

test('a monitor that says it is jailed and is not is never let go', async (t) => {
  for (const [acts, layer] of [
    [['jailed'], 'noNewPrivs'],
    [['noNewPrivs', 'jailed'], 'seccomp'],
  ] as const) {
    const outcome = await met(t, meet(acts));
    t.like(outcome, { code: 'ERR_CASEMATE_JAIL_MISMATCH', step: layer }, layer);
  }
});

test('a monitor that ends as soon as it is let go is an early exit', async (t) => {
  for (const [act, cause] of [
    ['exit', { reason: 'monitor-crashed', code: 3 }],
    ['crash', { reason: 'monitor-crashed', signal: 'SIGILL' }],
  ] as const) {
    const outcome = await met(t, meet([...released, act]));
    t.like(outcome, { code: 'ERR_CASEMATE_EARLY_EXIT', step: 'guest', cause }, act);
  }
});

test('a failure in a text that would steer a terminal is told without that', async (t) => {
  const outcome = await met(t, meet([...released, 'failed', 'exit']));
  t.like(outcome, { code: 'ERR_CASEMATE_KVM', step: 'vcpu' });
  t.regex(String(outcome.message), /\?{8}/);
  t.notRegex(String(outcome.message), /[^\x20-\x7e]/);
});

test('a monitor that hangs up and lives on is killed', async (t) => {
  // A message of no bytes cannot be told from that.
  for (const act of ['hang-up', 'nothing']) {
    t.like(
      await met(t, meet([...released, act])),
      { code: 'ERR_CASEMATE_EARLY_EXIT', cause: { reason: 'killed' } },
      act,
    );
    t.deepEqual(await met(t, meet([...rung, act])), { exit: { reason: 'killed' }, state: 'exited' }, act);
  }
});

test('a monitor that hangs up instead of an answer is killed', async (t) => {
  const pause = "(vm) => vm.pause().then(() => 'paused', ({ code }) => code)";
  const refused = { exit: 'ERR_CASEMATE_CLOSED', state: 'exited' };
  t.deepEqual(await met(t, meet([...rung, 'command', 'hang-up'], {}, pause)), refused);
});

test('a monitor that ignores whatever it is asked is killed as any other', async (t) => {
  const ignored = '(vm) => { vm.pause().catch(() => {}); return vm.kill(); }';
  t.deepEqual(await met(t, meet(rung, {}, ignored)), { exit: { reason: 'killed' }, state: 'exited' });
  const within = `(timeoutMs) => meet(${JSON.stringify(rung)}, { timeoutMs })`;
  const outcome = await met(t, `patiently(${within}, ({ code }) => code === 'ERR_CASEMATE_TIMEOUT')`);
  t.deepEqual(outcome, { exit: { reason: 'timeout' }, state: 'exited' });
});
