// The rig as a process: a machine whose CPUs have AMD's virtualization, emulated by QEMU without the help of any KVM.
import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import {
  closeSync,
  existsSync,
  mkdtempSync,
  openSync,
  readFileSync,
  renameSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { basename, join, resolve } from 'node:path';
import { createInterface } from 'node:readline';
import { kernelImage, policyWithModule, projectImage, qemuImage, rootImage, tool } from './image.js';

/** Where the logs of the last run are, and what it left behind. */
export const results = resolve('build/rig');

/** How many seconds a phase may say nothing before the rig counts as hung; CASEMATE_PATIENCE multiplies them. */
const silence = { boot: 60, suite: 300, results: 60, end: 30 };
/** Likewise, once the machine's kernel has said that a CPU of it stands still. It may yet go on, if the host is busy. */
const stallSilence = 60;
const stallWords = /rcu: INFO: .*stall.*|(?:soft lockup|hard LOCKUP) .*|INFO: task .* blocked for more than.*/;
const patience = Number(process.env.CASEMATE_PATIENCE ?? 1);

/**
 * The machine's SELinux: undefined for none; `debian` for Debian's policy, enforced; `module` for the same with our module
 * in it, built on the host: in the machine that takes minutes.
 */
const selinux = process.env.CASEMATE_RIG_SELINUX;

function commandLine(environment, more) {
  const [root, project, kernels] = [rootImage(), projectImage(), kernelImage()];
  const append = [
    ...['console=ttyS0', 'root=/dev/nvme0n1', 'rootwait', 'rw', 'init=/start', 'panic=-1'],
    // An emulated CPU has nothing to be mitigated, and is slow enough.
    'mitigations=off',
    ...(selinux ? ['security=selinux', `RIG_SELINUX=${selinux}`] : []),
    // What the kernel does not know it hands to its init as environment.
    ...environment,
  ].join(' ');
  if (append.length > 2047) throw new Error(`The kernel takes no command line of ${append.length} characters`);
  // What is written to these is thrown away.
  const drive = (image) => `file=${join(image, 'disk')},format=raw,if=none,snapshot=on`;
  return [
    ['-machine', 'q35', '-accel', 'tcg,thread=multi', '-smp', '2', '-cpu', 'EPYC,+svm,+npt', '-m', '2048'],
    ['-nodefaults', '-display', 'none', '-no-reboot'],
    ['-kernel', join(root, 'vmlinuz'), '-append', append],
    // Only one NVMe disk, for the kernel gives them their names in the order in which they answer.
    ['-drive', `${drive(root)},id=root`, '-device', 'nvme,drive=root,serial=root'],
    ['-drive', `${drive(project)},id=project`, '-device', 'virtio-blk,drive=project'],
    ['-drive', `${drive(kernels)},id=kernels`, '-device', 'virtio-blk,drive=kernels'],
    ...more,
    ...(selinux === 'module'
      ? [
          [
            '-drive',
            `file=${policyWithModule().archive},format=raw,if=none,id=policy,readonly=on`,
            '-device',
            'virtio-blk,drive=policy',
          ],
        ]
      : []),
  ].flat();
}

/** Starts the machine so that it ends with this process, however that ends. */
function start(args, stdio) {
  const { folder, command } = tool('usr/bin/qemu-system-x86_64');
  const firmware = ['qemu', 'seabios'].flatMap((name) => ['-L', join(folder, 'usr/share', name)]);
  return spawn('setpriv', ['--pdeathsig', 'KILL', ...command, ...firmware, ...args], { stdio });
}

/** A shell in the rig, on this terminal. */
export async function shell() {
  const args = commandLine([`RIG_TERM=${process.env.TERM}`], [['-serial', 'mon:stdio']]);
  const [code] = await once(start(args, 'inherit'), 'close');
  return code ?? 1;
}

/** The end of a log, for people. */
const tail = (path, lines) =>
  readFileSync(path, 'utf8').replaceAll('\r', '').trimEnd().split('\n').slice(-lines).join('\n');

/**
 * Runs compiled test files as each of some callers; `heard` gets each line of their TAP. Throws where the machine did
 * not come to its end, with what is known of that.
 */
export const runSuites = (callers, files, heard) =>
  runKept([`RIG_CALLERS=${callers}`, `RIG_FILES=${files}`, `CASEMATE_PATIENCE=${10 * patience}`], [], heard);

/** Likewise runs the bench, or parts of it, with the emulator's own disk. */
export const runBench = (parts, rounds, words, heard) =>
  runKept(
    ['RIG_CALLERS=root', `RIG_BENCH=${parts}`, `RIG_ROUNDS=${rounds}`, `RIG_WORDS=${words}`],
    [
      '-drive',
      `file=${join(qemuImage(), 'disk')},format=raw,if=none,id=qemu,snapshot=on`,
      '-device',
      'virtio-blk,drive=qemu',
    ],
    heard,
  );

async function runKept(environment, more, heard) {
  // Two rigs may run at the same time.
  const folder = mkdtempSync(`${results}-`);
  try {
    await runIn(folder, environment, more, heard);
  } finally {
    rmSync(results, { recursive: true, force: true });
    renameSync(folder, results);
  }
}

async function runIn(folder, environment, more, heard) {
  const [consoleLog, qemuLog, archive] = ['console.log', 'qemu.log', 'files.tar'].map((name) => join(folder, name));
  writeFileSync(consoleLog, '');
  writeFileSync(archive, '');
  truncateSync(archive, 256 * 2 ** 20);
  const args = commandLine(environment, [
    ['-serial', `file:${consoleLog}`],
    // The only trace of a triple fault, which resets the machine, and so ends it. There was one, under QEMU 11.1, without
    // a word of its kernel; and guests in it have ended by one in the midst of a test: their exit is `shutdown`.
    ['-d', 'cpu_reset'],
    ['-drive', `file=${archive},format=raw,if=none,id=results`, '-device', 'virtio-blk,drive=results'],
    ['-device', 'virtio-serial', '-chardev', 'stdio,id=tap,signal=off', '-device', 'virtserialport,chardev=tap'],
    more,
  ]);

  const log = openSync(qemuLog, 'w');
  // An end of its input would close the port of the TAP.
  const qemu = start(args, ['pipe', 'pipe', log]);
  closeSync(log);
  const closed = once(qemu, 'close');
  const started = performance.now();
  let phase = 'boot';
  let last = '';
  let heardAt = started;
  let stall;
  let hung = false;
  const watch = setInterval(() => {
    stall ??= stallWords.exec(readFileSync(consoleLog, 'utf8'))?.[0];
    const limit = stall === undefined ? silence[phase] : Math.min(silence[phase], stallSilence);
    if (performance.now() - heardAt > limit * patience * 1000) hung = qemu.kill('SIGKILL');
  }, 5000);
  for await (const line of createInterface({ input: qemu.stdout })) {
    phase = /^# rig: (suite|results|end)\b/.exec(line)?.[1] ?? phase;
    if (line.trim() !== '') last = line;
    heardAt = performance.now();
    heard(line);
  }
  clearInterval(watch);
  const [code, signal] = await closed;

  if (phase !== 'end') {
    const took = `${Math.round((performance.now() - started) / 1000)} s after its start`;
    const silent = `said nothing for ${Math.round((performance.now() - heardAt) / 1000)} s`;
    const stalled = `${silent}, and its kernel says that a CPU of the machine stands still ("${stall}")`;
    const ended =
      code === 0 ? 'was reset by its kernel or by a triple fault' : `ended with ${signal ?? `code ${code}`}`;
    const how = hung ? (stall === undefined ? silent : stalled) : ended;
    const lines = [`the rig ${how}, ${took}, in its phase "${phase}"; its last line was: ${last}`];
    for (const path of [consoleLog, qemuLog].filter(existsSync))
      lines.push(`The end of its ${basename(path)}:`, tail(path, 25));
    throw new Error(lines.join('\n'));
  }
  const { status } = spawnSync('tar', ['-xmf', archive, '--no-same-owner', '-C', folder], { stdio: 'inherit' });
  if (status !== 0) throw new Error(`${archive} is not what the rig should have left`);
  rmSync(archive);
}
