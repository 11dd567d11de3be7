/**
 * Linux guests beside those of QEMU's microvm, with the same kernel, initrd and command line, on the same host: how long
 * they take to boot, what their disks and networks carry, and what their monitors hold beside their memory. It runs in the
 * rig (`npm run bench:rig`), where QEMU is what the rig itself is run with. All take turns, round by round.
 */
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { readdirSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { availableParallelism, release } from 'node:os';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { type LaunchOptions, launch, warmUp } from 'casemate';
import { cpio } from 'casemate/image';
import { agentModules, busyboxRoot, initrd, program, testKernel } from '../helpers/linux.js';
import { program as compiled } from '../helpers/programs.js';
import { selinuxCost } from './selinux-cost.js';

const memoryMib = 256;
const cmdline = 'console=ttyS0 quiet panic=-1 pci=off';
const results = process.env.CASEMATE_RESULTS ?? '.';
const rounds = Number(process.env.RIG_ROUNDS ?? 5);
const wanted = (process.env.RIG_BENCH ?? '').split(',');

/** A machine that runs, and its serial console. */
interface Machine {
  readonly pid: number;
  /** All that it has said. */
  said: string;
  type(line: string): void;
  end(): Promise<unknown>;
}

interface Guest {
  readonly initrd: string;
  readonly vcpus?: number;
  /** Of a disk. */
  readonly disk?: string;
  readonly network?: boolean;
}

/** A way to run a guest. */
type Monitor = (guest: Guest) => Promise<Machine>;

async function casemate({ initrd, vcpus = 1, disk, network }: Guest, more: LaunchOptions = {}): Promise<Machine> {
  const vm = await launch({
    ...{ kernel: testKernel.vmlinux, initrd, cmdline, memoryMib, vcpus, startTimeoutMs: 60_000 },
    ...(disk !== undefined && { disks: [{ path: disk }] }),
    ...(network === true && { network: { tap: { addresses: ['10.11.12.1/24'] } } }),
    ...more,
  });
  const machine: Machine = {
    pid: vm.pid,
    said: '',
    type: (line) => vm.console.write(`${line}\n`),
    end: () => vm.kill(),
  };
  vm.console.on('data', (chunk) => {
    machine.said += chunk;
  });
  return machine;
}

const qemuRoot = '/tmp/qemu';
const libraries = ['--library-path', join(qemuRoot, 'usr/lib/x86_64-linux-gnu')];
const firmware = ['qemu', 'seabios'].flatMap((name) => ['-L', join(qemuRoot, 'usr/share', name)]);

/** The machine that QEMU has for this, with none of the devices that it may go without, and its quickest firmware. */
const microvm = 'microvm,accel=kvm,pit=off,pic=off,rtc=off,x-option-roms=off';

const qemu =
  (vhost = false): Monitor =>
  async ({ initrd, vcpus = 1, disk, network }) => {
    const child: ChildProcess = spawn(
      join(qemuRoot, 'usr/lib64/ld-linux-x86-64.so.2'),
      [
        [...libraries, join(qemuRoot, 'usr/bin/qemu-system-x86_64'), ...firmware],
        ['-M', microvm, '-bios', 'qboot.rom', '-cpu', 'host', '-smp', String(vcpus), '-m', String(memoryMib)],
        ['-nodefaults', '-no-user-config', '-display', 'none', '-serial', 'stdio', '-no-reboot'],
        ['-kernel', testKernel.vmlinux, '-initrd', initrd, '-append', cmdline],
        ['-global', 'virtio-mmio.force-legacy=false'],
        disk === undefined ? [] : ['-object', 'iothread,id=io', '-device', 'virtio-blk-device,drive=disk,iothread=io'],
        disk === undefined ? [] : ['-drive', `id=disk,file=${disk},format=raw,if=none,aio=io_uring`],
        network !== true
          ? []
          : ['-netdev', `tap,id=net,ifname=bench0,script=no,downscript=no,vhost=${vhost ? 'on' : 'off'}`],
        network !== true ? [] : ['-device', 'virtio-net-device,netdev=net'],
      ].flat(),
      { stdio: ['pipe', 'pipe', 'inherit'] },
    );
    const ended = once(child, 'exit');
    const machine: Machine = {
      pid: child.pid as number,
      said: '',
      type: (line) => child.stdin?.write(`${line}\n`),
      end: () => {
        child.kill('SIGKILL');
        return ended;
      },
    };
    child.stdout?.on('data', (chunk) => {
      machine.said += chunk;
    });
    return machine;
  };

/** Until it has said this. */
async function says(machine: Machine, words: string | RegExp): Promise<void> {
  const since = performance.now();
  // A turn of the event loop at a time: what it says is seen in the turn in which it comes.
  while (typeof words === 'string' ? !machine.said.includes(words) : !words.test(machine.said)) {
    if (performance.now() - since > 120_000) throw new Error(`It never said ${words}: ${machine.said}`);
    await delay(1);
  }
}

/** KiB of a process that are in memory, besides its guest's. */
function ownMemory(pid: number): number {
  const mappings = readFileSync(`/proc/${pid}/smaps`, 'utf8').split(/^(?=[0-9a-f]+-[0-9a-f]+ )/m);
  const kib = (mapping: string, field: string) =>
    Number(new RegExp(`^${field}: +(\\d+) kB`, 'm').exec(mapping)?.[1] ?? 0);
  return mappings
    .filter((mapping) => kib(mapping, 'Size') < (memoryMib - 8) * 1024)
    .reduce((sum, mapping) => sum + kib(mapping, 'Rss'), 0);
}

/** By what was measured, and by whom. */
const numbers = new Map<string, Map<string, number[]>>();

function note(what: string, who: string, value: number): void {
  const all = numbers.get(what) ?? new Map<string, number[]>();
  numbers.set(what, all.set(who, [...(all.get(who) ?? []), value]));
  console.log(`# ${what}, ${who}: ${value.toFixed(1)}`);
}

const median = (values: readonly number[]): number =>
  [...values].sort((left, right) => left - right)[Math.floor(values.length / 2)] as number;

/** A line of the guest's program about itself: "= what number". */
function noteAll(prefix: string, who: string, { said }: Machine): void {
  for (const [, what, value] of said.matchAll(/^= (\S+) ([\d.]+)/gm)) note(`${prefix} ${what}`, who, Number(value));
}

const guestProgram = readFileSync(compiled('bench-guest'));

/** A file, of an initrd. */
function written(name: string, bytes: Uint8Array): string {
  const path = `/tmp/${name}`;
  writeFileSync(path, bytes);
  return path;
}

async function boot(): Promise<void> {
  const path = written('boot', cpio([...busyboxRoot(), program('init', guestProgram)]));
  const monitors: Record<string, Monitor> = { casemate, QEMU: qemu() };
  for (let round = 0; round <= rounds; round += 1) {
    for (const vcpus of [1, 2, 4]) {
      for (const [who, start] of Object.entries(monitors)) {
        await warmUp();
        const t0 = performance.now();
        const machine = await start({ initrd: path, vcpus });
        try {
          await says(machine, /^init/m);
          const init = performance.now() - t0;
          machine.type('uname -r');
          await says(machine, `\n${testKernel.version}`);
          const command = performance.now() - t0;
          // The first of each warms the caches.
          if (round > 0) {
            note(`ms to init, ${vcpus} vCPU`, who, init);
            note(`ms to a command's result, ${vcpus} vCPU`, who, command);
            note(`KiB beside the guest's memory, ${vcpus} vCPU`, who, ownMemory(machine.pid));
          }
        } catch (error) {
          // One boot that hangs takes no other numbers along.
          console.log(`# ${who}, ${vcpus} vCPU: ${(error as Error).message}`);
          process.exitCode = 1;
        }
        await machine.end();
      }
    }
    await agentRound(round);
  }
}

/** A guest with the modules and the agent that it takes to run commands in it. */
const withAgent = (): LaunchOptions => ({
  kernel: testKernel.vmlinux,
  initrd: cpio([...busyboxRoot(), ...agentModules(testKernel, ['virtio_mmio', 'vmw_vsock_virtio_transport'])]),
  agent: true,
  memoryMib,
  startTimeoutMs: 60_000,
});

/** What people will do. */
async function agentRound(round: number): Promise<void> {
  const options = withAgent();
  await warmUp();
  const t0 = performance.now();
  await using vm = await launch(options);
  await vm.exec(['uname', '-r']);
  if (round > 0) note("ms to a command's result, 1 vCPU", 'casemate, exec()', performance.now() - t0);
}

const plain = 'as it is';

/** Words that may spare a kernel something, each against none of them. */
const words = (process.env.RIG_WORDS ?? '').split(',').filter(Boolean);

/** How often a guest has touched a port or a device's registers, by KVM's own count: no other exits, which load adds to. */
function accessesOf(pid: number): number {
  const [folder = ''] = readdirSync('/sys/kernel/debug/kvm').filter((name) => name.startsWith(`${pid}-`));
  const count = (name: string) => Number(readFileSync(`/sys/kernel/debug/kvm/${folder}/${name}`, 'utf8'));
  return count('io_exits') + count('mmio_exits');
}

async function commandLines(): Promise<void> {
  must('mount', '-t', 'debugfs', 'debugfs', '/sys/kernel/debug');
  const path = written('boot', cpio([...busyboxRoot(), program('init', guestProgram)]));
  for (let round = 0; round <= rounds; round += 1) {
    for (const word of ['', ...words]) {
      await warmUp();
      const t0 = performance.now();
      const machine = await casemate({ initrd: path }, { cmdline: `${cmdline} ${word}` });
      await says(machine, /^init/m);
      if (round > 0) {
        const who = word === '' ? plain : `with ${word}`;
        note('ms to init', who, performance.now() - t0);
        note('accesses to devices', who, accessesOf(machine.pid));
      }
      await machine.end();
    }
  }
}

/** What of its boot a kernel counts itself: the calls that took it longest. */
async function initcalls(): Promise<void> {
  await using vm = await launch({
    ...withAgent(),
    cmdline: `${cmdline} initcall_debug log_buf_len=4M printk.time=1`,
  });
  const { stdout } = await vm.exec(['sh', '-c', `dmesg -s ${4 << 20}`]);
  const said = `${stdout}`;
  writeFileSync(join(results, 'dmesg'), said);
  const calls = [...said.matchAll(/initcall (\S+) returned \S+ after (\d+) usecs/g)].map(([, name, usecs]) => ({
    name: name as string,
    ms: Number(usecs) / 1000,
  }));
  const all = calls.reduce((sum, { ms }) => sum + ms, 0);
  calls.sort((left, right) => right.ms - left.ms);
  console.log(`# ${calls.length} initcalls, ${all.toFixed(0)} ms`);
  for (const { name, ms } of calls.slice(0, 25)) console.log(`# ${ms.toFixed(1)} ms ${name}`);
}

const files = [program('bin/bench-guest', guestProgram)];

async function disk(): Promise<void> {
  const script = 'bench-guest disk /dev/vda; echo done; sleep 1000';
  const path = written('disk-initrd', initrd(testKernel, script, { modules: ['virtio_mmio', 'virtio_blk'], files }));
  const image = '/tmp/disk';
  const monitors: Record<string, Monitor> = { casemate, QEMU: qemu() };
  for (let round = 0; round < rounds; round += 1) {
    for (const [who, start] of Object.entries(monitors)) {
      writeFileSync(image, '');
      truncateSync(image, 64 << 20);
      const machine = await start({ initrd: path, disk: image });
      await says(machine, 'done');
      noteAll('disk', who, machine);
      await machine.end();
    }
  }
  rmSync(image);
}

function must(command: string, ...args: string[]): void {
  const { status, stderr } = spawnSync(command, args, { encoding: 'utf8' });
  if (status !== 0) throw new Error(`${command} ${args.join(' ')}: ${stderr}`);
}

async function network(): Promise<void> {
  const script =
    'ip link set eth0 up; ip addr add 10.11.12.2/24 dev eth0; echo ready; read line; bench-guest net 10.11.12.1; echo done; sleep 1000';
  const path = written(
    'net-initrd',
    initrd(testKernel, script, { modules: ['virtio_mmio', 'virtio_net', 'af_packet'], files }),
  );
  must('ip', 'tuntap', 'add', 'dev', 'bench0', 'mode', 'tap', 'vnet_hdr');
  must('ip', 'addr', 'add', '10.11.12.1/24', 'dev', 'bench0');
  must('ip', 'link', 'set', 'bench0', 'up');
  must('modprobe', 'vhost_net');
  const monitors: Record<string, Monitor> = { casemate, QEMU: qemu(), 'QEMU, vhost': qemu(true) };
  for (let round = 0; round < rounds; round += 1) {
    for (const [who, start] of Object.entries(monitors)) {
      const machine = await start({ initrd: path, network: true });
      const inside = who === 'casemate' ? ['nsenter', '-t', String(machine.pid), '-n', '--'] : [];
      const server = spawn('setpriv', ['--pdeathsig', 'KILL', ...inside, compiled('bench-guest'), 'serve'], {
        stdio: ['ignore', 'pipe', 'inherit'],
      });
      await once(server.stdout, 'data');
      // What is typed before somebody reads is lost where a driver begins anew.
      await says(machine, /^ready/m);
      machine.type('go');
      await says(machine, 'done');
      noteAll('network', who, machine);
      await machine.end();
      server.kill('SIGKILL');
    }
  }
}

function table(): string {
  const lines = [...numbers].flatMap(([what, all]) => {
    const compared = all.has(plain) ? plain : 'QEMU';
    const reference = median(all.get(compared) ?? [Number.NaN]);
    return [...all].map(([who, values]) => {
      const [low, high] = [Math.min(...values), Math.max(...values)];
      const ratio = who === compared ? '' : (median(values) / reference).toFixed(2);
      return `| ${what} | ${who} | ${median(values).toFixed(1)} | ${low.toFixed(1)}–${high.toFixed(1)} | ${ratio} |`;
    });
  });
  return ['| what | who | median | range | ratio |', '|---|---|---|---|---|', ...lines, ''].join('\n');
}

function fail(error: Error): void {
  console.log(`# ${error.message}`);
  process.exitCode = 1;
}

/** Launches of bare-metal guests, and nothing of QEMU's. */
async function selinux(): Promise<void> {
  console.log(await selinuxCost(rounds));
}

for (const [name, bench] of Object.entries({ boot, disk, network, initcalls, words: commandLines, selinux }))
  if (wanted.includes(name)) await bench().catch(fail);
const header = `${rounds} rounds, ${availableParallelism()} CPUs, kernel ${release()}, guests ${testKernel.version}`;
const report = `${header}\n\n${table()}`;
console.log(report);
writeFileSync(join(results, 'bench.md'), report);
writeFileSync(
  join(results, 'bench.json'),
  JSON.stringify([...numbers].map(([what, all]) => [what, Object.fromEntries(all)])),
);
// What a part that failed has started ends with this process.
process.exit();
