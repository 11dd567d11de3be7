import { spawn } from 'node:child_process';
import { text } from 'node:stream/consumers';
import { requires, root } from '../helpers/index.js';

const test = requires('kvm');

/** What each script starts with. */
const prelude = `
import { readdirSync, readFileSync, readlinkSync } from 'node:fs';
import { setTimeout as delay } from 'node:timers/promises';
import { Worker } from 'node:worker_threads';
import { GuestMemory } from 'casemate/kvm';
import { machine, realModeVcpu } from '${new URL('guests.js', import.meta.url)}';
import { within } from '${new URL('../helpers/proc.js', import.meta.url)}';

const endless = [0xeb, 0xfe];
function guest(code) {
  const made = machine(code);
  return Object.assign(made, { vcpu: realModeVcpu(made) });
}
const counted = (folder, matches) => readdirSync(folder).filter((name) => {
  try { return matches(folder + '/' + name); } catch { return false; }
}).length;
const threads = () => counted('/proc/self/task', (path) => readFileSync(path + '/comm', 'utf8').startsWith('casemate-vcpu'));
const descriptors = () => counted('/proc/self/fd', (path) => /kvm/.test(readlinkSync(path)));
async function until(condition) {
  const holds = () => { globalThis.gc?.(); return condition(); };
  if (!(await within(10_000, holds))) throw new Error('still not: ' + condition + ', ' + threads() + ' threads, ' + descriptors() + ' descriptors');
}
`;

/** Runs a script in a process of its own. */
async function run(script: string): Promise<{ code: number | null; signal: string | null; out: string; err: string }> {
  const child = spawn(process.execPath, ['--expose-gc', '--input-type=module', '-e', prelude + script], {
    cwd: root,
    stdio: ['ignore', 'pipe', 'pipe'],
    timeout: 180_000,
    killSignal: 'SIGKILL',
  });
  const exit = new Promise<[number | null, string | null]>((resolve) => child.on('close', (...args) => resolve(args)));
  const [out, err, [code, signal]] = await Promise.all([text(child.stdout), text(child.stderr), exit]);
  return { code, signal, out, err };
}

const fine = { code: 0, signal: null, err: '' };

test.serial('a worker terminated while its vCPU runs leaves no thread and no descriptor', async (t) => {
  const result = await run(`
    for (let i = 0; i < 10; i++) {
      const worker = new Worker(new URL('${new URL('lifetime.worker.js', import.meta.url)}'), { execArgv: [] });
      await new Promise((resolve, reject) => worker.once('message', resolve).once('error', reject));
      if (i % 2) await delay(2);
      await worker.terminate();
    }
    await until(() => threads() === 0 && descriptors() === 0);
  `);
  t.like(result, fine);
});

test.serial('process.exit ends the process while a vCPU runs', async (t) => {
  const result = await run(`
    const { vcpu } = guest(endless);
    vcpu.run();
    await delay(5);
    process.exit(7);
  `);
  t.like(result, { ...fine, code: 7 });
});

test.serial('what is not closed is collected, with its thread', async (t) => {
  const result = await run(`
    async function leak() {
      const { vcpu } = guest([0xe6, 0x10, 0xf4]);
      const exit = await vcpu.run();
      if (exit.reason !== 'io' || threads() === 0) throw new Error('did not run');
    }
    for (let i = 0; i < 5; i++) await leak();
    await until(() => threads() === 0 && descriptors() === 0);
  `);
  t.like(result, fine);
});

test.serial('a run that nobody refers to goes on, and is not collected', async (t) => {
  const result = await run(`
    const marks = (() => {
      // l: inc word [0x2000]; jmp l
      const { vcpu, memory } = guest([0xff, 0x06, 0x00, 0x20, 0xeb, 0xfa]);
      vcpu.run();
      return memory.bytes(0x2000, 2);
    })();
    for (let i = 0; i < 20; i++) { gc(); await delay(2); }
    const before = marks[0];
    await until(() => marks[0] !== before);
    process.exit(0);
  `);
  t.like(result, fine);
});

test.serial('an idle vCPU does not keep the process alive, a running one does', async (t) => {
  const idle = await run(`
    const { vcpu } = guest([0xe6, 0x10, 0xf4]);
    await vcpu.run();
    console.log('done');
  `);
  t.like(idle, { ...fine, out: 'done\n' });
  const running = await run(`
    const { vcpu } = guest(endless);
    vcpu.run().then((exit) => console.log(exit.reason));
    setTimeout(() => vcpu.interrupt(), 50).unref();
  `);
  t.like(running, { ...fine, out: 'intr\n' });
});

test.serial('memory lives as long as a slot or a view needs it', async (t) => {
  const result = await run(`
    function unremembered() {
      const { vm, vcpu } = guest([0xa0, 0x00, 0x20, 0xe6, 0x10, 0xf4]); // mov al, [0x2000]; out 0x10, al; hlt
      const memory = new GuestMemory(4096);
      memory.bytes()[0] = 99;
      vm.deleteMemorySlot(0);
      const low = new GuestMemory(0x2000);
      low.bytes(0x1000).set([0xa0, 0x00, 0x20, 0xe6, 0x10, 0xf4]);
      vm.setMemorySlot({ slot: 0, guestAddress: 0, memory: low });
      vm.setMemorySlot({ slot: 1, guestAddress: 0x2000, memory });
      return { vm, vcpu };
    }
    const { vm, vcpu } = unremembered();
    for (let i = 0; i < 20; i++) { gc(); await delay(1); }
    const exit = await vcpu.run();
    if (exit.data[0] !== 99) throw new Error('read ' + exit.data[0]);

    const view = (() => new GuestMemory(1 << 20).bytes())();
    view.fill(5);
    for (let i = 0; i < 20; i++) { gc(); await delay(1); }
    if (!view.every((byte) => byte === 5)) throw new Error('memory went away');
    vm.close();
  `);
  t.like(result, fine);
});
