/**
 * Real kernels for tests of Linux guests, and small initrds for them. They lie in the folder CASEMATE_TEST_KERNELS,
 * which the rig has; test/rig/image.js makes it. In there:
 *
 *     busybox                 static
 *     systemd.ext4            a root of Debian, whose init is systemd; 192 MiB, sparse
 *     <name>/vmlinuz          the kernel as its distribution installs it
 *     <name>/vmlinux          the same, unpacked
 *     <name>/modules/*.ko     some of its modules, not compressed
 *     <name>/kernel.json      { version, modules: { "virtio_net": ["failover.ko", ...] } }: what each takes, in the
 *                             order in which to load it; nothing where it is built in
 */
import { spawnSync } from 'node:child_process';
import { copyFileSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { LaunchOptions, Vm } from 'casemate';
import { cpio, type Entry } from 'casemate/image';
import { has } from './capabilities.js';
import { patience } from './proc.js';

/** One kernel: the paths of its forms, and what it takes to load each of its modules. */
export interface TestKernel {
  readonly name: string;
  readonly version: string;
  readonly vmlinuz: string;
  readonly vmlinux: string;
  readonly modules: Readonly<Record<string, readonly string[]>>;
}

const folder = process.env.CASEMATE_TEST_KERNELS ?? '';

/** Every kernel that there is to be booted; of none, where there are none, so that tests can be declared and skipped. */
export const testKernels: readonly TestKernel[] = has('kernels')
  ? readdirSync(folder, { withFileTypes: true })
      .filter((entry) => entry.isDirectory() && entry.name !== 'lost+found')
      .map(({ name }) => readKernel(name))
  : [{ name: 'any kernel', version: '', vmlinuz: '', vmlinux: '', modules: {} }];

function readKernel(name: string): TestKernel {
  const { version, modules } = JSON.parse(readFileSync(join(folder, name, 'kernel.json'), 'utf8')) as Pick<
    TestKernel,
    'version' | 'modules'
  >;
  return { name, version, vmlinuz: join(folder, name, 'vmlinuz'), vmlinux: join(folder, name, 'vmlinux'), modules };
}

/** The one for tests that are not about kernels: the smallest. */
export const testKernel = (testKernels.find(({ name }) => name === 'cloud') ?? testKernels[0]) as TestKernel;

/** What is in an initrd of {@link initrd}. */
export interface InitrdOptions {
  /** Loaded before anything else, with what they need. */
  readonly modules?: readonly string[];
  /** What else is in there; {@link program} makes one of a program. */
  readonly files?: readonly Entry[];
}

/** An executable file. */
export function program(path: string, contents: Uint8Array | string): Entry {
  return { type: 'file', path, mode: 0o755, contents };
}

/** Files of modules, in the order in which to load them, with what they need. */
function moduleFiles(kernel: TestKernel, modules: readonly string[]): string[] {
  const files = modules.flatMap((name) => {
    const found = kernel.modules[name];
    if (found === undefined) throw new Error(`${kernel.name} came without the module ${name}: test/rig/packages.js`);
    return found;
  });
  return [...new Set(files)];
}

const moduleAt = (kernel: TestKernel, path: string, file: string): Entry =>
  program(`${path}/${file}`, readFileSync(join(folder, kernel.name, 'modules', file)));

const busybox = (): Entry => program('bin/busybox', readFileSync(join(folder, 'busybox')));

const commands =
  'sh cat dd echo env head id kill ls mount poweroff ps pwd reboot sha256sum sleep stty true tty uname wc yes'.split(
    ' ',
  );

/** A root of busybox, some of its commands by their names, and no init: for the agent to be it. */
export function busyboxRoot(files: readonly Entry[] = []): Entry[] {
  return [
    busybox(),
    ...commands.map((name): Entry => ({ type: 'symlink', path: `bin/${name}`, target: 'busybox' })),
    { type: 'file', path: 'etc/passwd', contents: 'root:x:0:0::/root:/bin/sh\nguest:x:1000:1001::/home:/bin/sh\n' },
    { type: 'file', path: 'etc/group', contents: 'root:x:0:\nguest:x:1001:\nothers:x:1002:root,guest\n' },
    ...files,
  ];
}

/** What the agent loads before anything else: in the order of modulePaths(), for the reason that it has. */
export const agentModules = (kernel: TestKernel, modules: readonly string[]): Entry[] =>
  moduleFiles(kernel, modules)
    .reverse()
    .map((file) => moduleAt(kernel, 'casemate/modules', file));

/** A disk whose root has systemd as its init, for one guest. */
export function systemdDisk(path: string): void {
  const { status, stderr } = spawnSync('cp', ['--sparse=always', join(folder, 'systemd.ext4'), path]);
  if (status !== 0) throw new Error(String(stderr));
}

/** Makes a folder as depmod leaves one of these modules and of what they need: /lib/modules/<version> in small. */
export function modulesFolder(kernel: TestKernel, modules: readonly string[], path: string): void {
  mkdirSync(join(path, 'kernel'), { recursive: true });
  const lines = moduleFiles(kernel, modules).map((file) => {
    copyFileSync(join(folder, kernel.name, 'modules', file), join(path, 'kernel', file));
    const order = Object.values(kernel.modules).find((files) => files.at(-1) === file) ?? [file];
    // What has to be loaded first stands last. modules.dep(5)
    const needs = order.slice(0, -1).reverse();
    return `kernel/${file}:${needs.map((other) => ` kernel/${other}`).join('')}\n`;
  });
  const builtIn = modules.filter((name) => kernel.modules[name]?.length === 0);
  writeFileSync(join(path, 'modules.dep'), lines.join(''));
  writeFileSync(join(path, 'modules.builtin'), builtIn.map((name) => `kernel/${name}.ko\n`).join(''));
}

/**
 * An initrd whose init mounts /proc, /sys and /dev, loads modules, has the console for its streams (one of these may be
 * its driver), runs these lines of shell, and powers off. All of busybox's commands can be called by their names.
 */
export function initrd(kernel: TestKernel, script: string, { modules = [], files = [] }: InitrdOptions = {}): Buffer {
  const needed = moduleFiles(kernel, modules);
  const drivers = needed.map((file) => moduleAt(kernel, 'modules', file));
  // Of busybox the shell finds every command, once it finds itself in /proc.
  const init = `#!/bin/busybox sh
export PATH=/bin
/bin/busybox mkdir -p /proc /sys /dev
/bin/busybox mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
${needed.map((file) => `insmod /modules/${file}\n`).join('')}exec </dev/console >/dev/console 2>&1
${script}
poweroff -f
`;
  return cpio([busybox(), ...drivers, ...files, program('init', init)]);
}

/**
 * What launches a kernel that runs these lines of shell and powers off; `options` go into it. With {@link run} a test is
 * one line: `const { output, exit } = await run(linux('dmesg', { modules: ['virtio_blk'] }))`.
 */
export function linux(
  script: string,
  { on = testKernel, modules = [], files = [], ...options }: LaunchOptions & InitrdOptions & { on?: TestKernel } = {},
): LaunchOptions {
  return {
    kernel: on.vmlinux,
    initrd: initrd(on, script, { modules, files }),
    startTimeoutMs: 60_000 * patience,
    timeoutMs: 120_000 * patience,
    ...options,
  };
}

/** Reads a guest's console until it has said this; returns all that it has said. */
export async function says(vm: Vm, words: string): Promise<string> {
  let said = '';
  for await (const chunk of vm.console.iterator({ destroyOnReturn: false })) {
    said += chunk;
    if (said.includes(words)) return said;
  }
  throw new Error(`It ended without saying "${words}": ${said}`);
}
