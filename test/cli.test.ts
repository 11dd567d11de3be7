import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { builtFile } from '#lib/native.js';
import { requires, root } from './helpers/index.js';
import { echo, follow, kernel, out, powerOff, print, printString } from './helpers/kernels.js';
import { descendantsOf, ifThere, patiently, readProc } from './helpers/proc.js';

const MAIN = join(root, 'lib/cli/main.js');

interface Ended {
  readonly code: number | null;
  readonly stdout: Buffer;
  readonly stderr: string;
}

function start(args: readonly string[], main = MAIN, env: NodeJS.ProcessEnv = {}): ChildProcess {
  return spawn(process.execPath, [main, ...args], { env: { ...process.env, ...env }, stdio: 'pipe' });
}

async function end(child: ChildProcess): Promise<Ended> {
  const stdout: Buffer[] = [];
  let stderr = '';
  child.stdout?.on('data', (chunk: Buffer) => stdout.push(chunk));
  child.stderr?.setEncoding('utf8').on('data', (chunk: string) => {
    stderr += chunk;
  });
  const [code] = (await once(child, 'close')) as [number | null];
  return { code, stdout: Buffer.concat(stdout), stderr };
}

/** Runs the command to its end, with `input` piped in. */
async function casemate(
  args: readonly string[],
  input: string | Uint8Array = '',
  env?: NodeJS.ProcessEnv,
): Promise<Ended> {
  const child = start(args, MAIN, env);
  child.stdin?.on('error', () => {}); // it may end before it has read all
  child.stdin?.end(input);
  return end(child);
}

/**
 * Guests of a few instructions, as flat binaries, so that these tests need no compiler (docs/guest-abi.md has the
 * ports: e0 the doorbell, e4 write, e8 read, ec exit).
 */
const GUESTS = {
  /** mov eax, 7; out 0xec, eax */
  seven: 'b807000000 e7ec',
  /** out 0xe0, eax; ud2 */
  crash: 'e7e0 0f0b',
  /** ud2: before its first hypercall */
  stillborn: '0f0b',
  /** out 0xe0, eax; jmp to itself */
  loop: 'e7e0 ebfe',
  /**
   * sub rsp, 64; again: a transfer at rsp: lea rax, [rsp-0x1000]; mov [rsp], rax; 2048 bytes; no flags;
   * mov eax, esp; out 0xe8, eax; mov rax, [rsp+24]; test rax, rax; jle done; mov [rsp+8], rax; mov eax, esp;
   * out 0xe4, eax; jmp again; done: xor eax, eax; out 0xec, eax
   */
  echo:
    '4883ec40 488d842400f0ffff 48890424 48c744240800080000 48c744241000000000 89e0 e7e8 488b442418 4885c0 7e0b ' +
    '4889442408 89e0 e7e4 ebc9 31c0 e7ec',
} as const;

function file(t: ExecutionContext, name: string, contents: Uint8Array): string {
  const folder = mkdtempSync(join(tmpdir(), 'casemate-cli-'));
  t.teardown(() => rmSync(folder, { recursive: true }));
  const path = join(folder, name);
  writeFileSync(path, contents);
  return path;
}

function guest(t: ExecutionContext, name: keyof typeof GUESTS): string {
  return file(t, `${name}.bin`, Buffer.from(GUESTS[name].replaceAll(' ', ''), 'hex'));
}

function monitorOf(child: ChildProcess): number {
  const found = descendantsOf(child.pid as number).find(
    ({ pid }) => ifThere(() => readProc(pid, 'comm')) === 'casemate-vmm\n',
  );
  if (found === undefined) throw new Error('no monitor');
  return found.pid;
}

/** A started guest that has already said something: its VM runs. */
async function startEcho(t: ExecutionContext): Promise<ChildProcess> {
  const child = start(['run', guest(t, 'echo')]);
  t.teardown(() => child.kill('SIGKILL'));
  child.stdin?.write('hello');
  const [chunk] = (await once(child.stdout as NodeJS.ReadableStream, 'data')) as [Buffer];
  t.is(chunk.toString(), 'hello');
  return child;
}

test('help tells a newcomer where to start', async (t) => {
  const { code, stdout } = await casemate(['--help']);
  t.is(code, 0);
  t.regex(stdout.toString(), /Start here:\n +casemate doctor/);
  t.deepEqual((await casemate([])).stdout, stdout);
});

requires('noSelinux')('without SELinux its status says so, and a check of it fails with what to do', async (t) => {
  const status = await casemate(['selinux', '--json']);
  t.is(status.code, 0);
  t.like(JSON.parse(status.stdout.toString()), { mode: 'disabled', unlabelled: 'SELinux is disabled on this host' });
  const check = await casemate(['selinux', 'check']);
  t.is(check.code, 1);
  t.regex(check.stdout.toString(), /✗ mode: disabled\n {2}→ /);
  t.regex((await casemate(['help', 'selinux'])).stdout.toString(), /install/);
});

test('help knows every command, and every option of it', async (t) => {
  const { stdout } = await casemate(['help', 'run']);
  for (const option of [
    '--kernel',
    '--initrd',
    '--cmdline',
    '--memory',
    '--cpl',
    '--input',
    '--timeout',
    '--json',
    '--timeline',
    '--evidence',
    '--help',
  ]) {
    t.true(stdout.includes(option), option);
  }
  const bench = (await casemate(['help', 'bench'])).stdout;
  for (const option of ['--launches', '--memory', '--json', '--help']) t.true(bench.includes(option), option);
  t.regex((await casemate(['help', 'doctor'])).stdout.toString(), /Exit codes:/);
});

test('the version is that of the package', async (t) => {
  const { version } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'));
  t.is((await casemate(['--version'])).stdout.toString(), `${version}\n`);
});

test('a wrong command line exits with 125, says so and where to read on, without a stack', async (t) => {
  const { code, stdout, stderr } = await casemate(['run', '--fly']);
  t.is(code, 125);
  t.is(stdout.length, 0);
  t.regex(
    stderr,
    /^casemate: Unknown option '--fly' \(ERR_CASEMATE_INVALID_OPTION\)\n {2}→ See casemate help run\.\n$/,
  );
});

test('an option that the library refuses is named as it was given', async (t) => {
  const { code, stderr } = await casemate(['run', '--memory', '3']);
  t.is(code, 125);
  t.regex(stderr, /^casemate: Expected .* for --memory /);
});

test('CASEMATE_DEBUG shows the whole error', async (t) => {
  const { stderr } = await casemate(['run', '--memory', '3'], '', { CASEMATE_DEBUG: '1' });
  t.regex(stderr, /\n +at /);
});

test('where nothing is built, help works and the rest says what to do', async (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'casemate-cli-'));
  t.teardown(() => rmSync(folder, { recursive: true }));
  mkdirSync(join(folder, 'lib'));
  cpSync(join(root, 'lib'), join(folder, 'lib'), { recursive: true });
  cpSync(join(root, 'package.json'), join(folder, 'package.json'));
  const main = join(folder, 'lib/cli/main.js');
  t.is((await end(start(['--help'], main))).code, 0);

  const run = await end(start(['run'], main));
  t.is(run.code, 125);
  t.regex(run.stderr, /ERR_CASEMATE_NOT_BUILT\)\n {2}→ Install it again: .*npm install/);

  const doctor = await end(start(['doctor', '--json'], main));
  t.is(doctor.code, 1);
  const { ok, checks } = JSON.parse(doctor.stdout.toString());
  t.false(ok);
  t.is(checks.find(({ name }: { name: string }) => name === 'Addon').status, 'fail');
});

test('an error with --json is JSON on stdout, too', async (t) => {
  const { code, stdout, stderr } = await casemate(['run', '--json', '--memory', '3']);
  t.is(code, 125);
  const { error } = JSON.parse(stdout.toString());
  t.is(error.code, 'ERR_CASEMATE_INVALID_OPTION');
  t.is(error.step, 'options.memoryMib');
  t.truthy(error.remedy);
  t.regex(stderr, /^casemate: /);
});

const vmTest = requires('kvm', 'userns');

vmTest('the doctor finds that a strict launch works here', async (t) => {
  const { code, stdout } = await casemate(['doctor']);
  t.regex(stdout.toString(), /✓ Strict launch/);
  t.is(code, 0);
});

vmTest('run without a guest runs the built-in one', async (t) => {
  const { code, stdout, stderr } = await casemate(['run']);
  t.is(stderr, '');
  t.regex(stdout.toString(), /^Hello from inside the virtual machine/);
  t.is(code, 0);
});

vmTest('the guest gets what is behind it as its arguments', async (t) => {
  const { stdout } = await casemate(['run', '--memory', '32', builtFile('casemate-guest-hello.elf'), '--json', '-h']);
  t.regex(stdout.toString(), /memory +32 MiB/);
  t.regex(stdout.toString(), /arguments +--json -h/);
});

vmTest("the guest's exit code is the command's", async (t) => {
  const { code, stderr } = await casemate(['run', guest(t, 'seven')]);
  t.is(code, 7);
  t.is(stderr, '');
});

vmTest('stdin goes into the guest, and what it prints comes out, byte for byte', async (t) => {
  const input = Buffer.alloc(1_000_003, 'no line ends \0 here \xff', 'latin1');
  const { code, stdout } = await casemate(['run', guest(t, 'echo')], input);
  t.is(code, 0);
  t.true(stdout.equals(input));
});

vmTest('a guest that never reads leaves its input', async (t) => {
  const { code } = await casemate(['run', guest(t, 'seven')], Buffer.alloc(1_000_000));
  t.is(code, 7);
});

vmTest('the end of a VM ends the command though stdin stays open', async (t) => {
  const { code } = await end(start(['run', guest(t, 'seven')]));
  t.is(code, 7);
});

vmTest('a guest that takes too long exits with 124', async (t) => {
  const path = guest(t, 'loop');
  const { code, stderr } = await patiently(
    (ms) => casemate(['run', '--timeout', `${ms}`, path]),
    (ended) => ended.stderr.includes('ERR_CASEMATE_TIMEOUT'), // before it ran
  );
  t.is(code, 124);
  t.regex(stderr, /^casemate: .*time/);
});

vmTest('a guest that crashes exits with 134 and says where', async (t) => {
  for (const name of ['crash', 'stillborn'] as const) {
    const { code, stderr } = await casemate(['run', guest(t, name)]);
    t.is(code, 134);
    t.regex(stderr, /#UD.*rip 0x20000/);
  }
});

vmTest('Ctrl-C ends the VM and exits with 130', async (t) => {
  const child = await startEcho(t);
  const monitor = monitorOf(child);
  child.kill('SIGINT');
  t.is((await end(child)).code, 130);
  t.throws(() => process.kill(monitor, 0), { code: 'ESRCH' });
});

vmTest('SIGTERM ends the VM and exits with 143', async (t) => {
  const child = await startEcho(t);
  child.kill('SIGTERM');
  t.is((await end(child)).code, 143);
});

vmTest('a VM that is killed from outside exits with 137', async (t) => {
  const child = await startEcho(t);
  process.kill(monitorOf(child), 'SIGKILL');
  const { code, stderr } = await end(child);
  t.is(code, 137);
  t.regex(stderr, /killed/);
});

vmTest('the VM ends when whoever reads its output goes away', async (t) => {
  const child = await startEcho(t);
  child.stdout?.destroy();
  child.stdin?.on('error', () => {});
  child.stdin?.write('more');
  t.is((await end(child)).code, 141);
});

vmTest('--json tells how the VM ended and what it printed', async (t) => {
  const { code, stdout } = await casemate(['run', '--json', guest(t, 'echo')], 'ä line\n');
  t.is(code, 0);
  const result = JSON.parse(stdout.toString());
  t.like(result, { exitCode: 0, exit: { reason: 'exit', code: 0 }, console: 'ä line\n' });
  t.is(result.timeline, undefined);
  t.is(result.evidence, undefined);
});

vmTest('--json has output that is no text in base64', async (t) => {
  const input = Buffer.from([0xff, 0xfe, 0]);
  const result = JSON.parse((await casemate(['run', '--json', guest(t, 'echo')], input)).stdout.toString());
  t.is(result.console, undefined);
  t.is(result.consoleBase64, input.toString('base64'));
});

vmTest('--json has the registers of a crash in hexadecimal', async (t) => {
  const { code, stdout } = await casemate(['run', '--json', guest(t, 'crash')]);
  t.is(code, 134);
  const { exit } = JSON.parse(stdout.toString());
  t.like(exit, { reason: 'fault', name: '#UD', registers: { rip: '0x200002' } });
});

vmTest('--json includes timeline and evidence where they are asked for', async (t) => {
  const { stdout } = await casemate(['run', '--json', '--timeline', '--evidence']);
  const { timeline, evidence } = JSON.parse(stdout.toString());
  t.true(timeline.doorbellUs > 0);
  t.true(timeline.launchUs >= timeline.doorbellUs);
  t.true(timeline.steps.some(({ name }: { name: string }) => name === 'clone3'));
  t.true(evidence.ok, JSON.stringify(evidence));
});

vmTest('--timeline and --evidence print tables on stderr, and stdout is the guest alone', async (t) => {
  const { code, stdout, stderr } = await casemate(['run', '--timeline', '--evidence']);
  t.is(code, 0);
  t.regex(stdout.toString(), /^Hello [^✓█]*$/);
  t.regex(stderr, /step +where +at µs +took µs/);
  t.regex(stderr, /clone3 +launcher +\d+ +\d+ +[▏█]/);
  t.regex(stderr, /✓ pidNamespace/);
  t.notRegex(stderr, /✗/);
});

vmTest('a kernel gets its command line and initrd, what is typed, and exits with 0 where it powers off', async (t) => {
  const path = file(t, 'vmlinux', kernel(echo, powerOff));
  t.like(await casemate(['run', '--kernel', path], 'typed.'), { code: 0, stdout: Buffer.from('typed.'), stderr: '' });
  const line = file(t, 'vmlinux', kernel(follow(0x228), printString, powerOff));
  const asked = await casemate(['run', '-k', line, '--cmdline', 'a b', '-m', '64']);
  t.like(asked, { code: 0, stdout: Buffer.from('a b\0') });
  const initrd = file(t, 'initrd', Buffer.from('files\0'));
  const given = await casemate([
    'run',
    '-k',
    file(t, 'vmlinux', kernel(follow(0x218), printString, powerOff)),
    '--initrd',
    initrd,
  ]);
  t.like(given, { code: 0, stdout: Buffer.from('files\0') });
});

vmTest('a kernel that asks for a restart exits with 1, one that panics with 134, and it is said', async (t) => {
  const restarted = await casemate(['run', '--kernel', file(t, 'vmlinux', kernel(print('bye'), out(0xcf9, 6)))]);
  t.like(restarted, { code: 1, stdout: Buffer.from('bye'), stderr: 'casemate: the guest asked for a restart\n' });
  const panicked = await casemate(['run', '--kernel', file(t, 'vmlinux', kernel(out(0x505, 1)))]);
  t.like(panicked, { code: 134, stderr: 'casemate: the kernel of the guest panicked\n' });
});

vmTest('what is no kernel, or is not there, exits with 125 and says what to pass', async (t) => {
  const wrong = await casemate(['run', '--kernel', file(t, 'vmlinuz', Buffer.alloc(4096))]);
  t.is(wrong.code, 125);
  t.regex(wrong.stderr, /ERR_CASEMATE_GUEST_IMAGE\)\n {2}→ Pass the bzImage or the vmlinux.* --memory\.\n$/);
  const missing = await casemate(['run', '--kernel', '/nonexistent']);
  t.is(missing.code, 125);
  t.regex(missing.stderr, /^casemate: --kernel: /);
});

vmTest('a guest that is not there exits with 125', async (t) => {
  const { code, stderr } = await casemate(['run', '/nonexistent/guest']);
  t.is(code, 125);
  t.regex(stderr, /^casemate: the guest: .*ERR_CASEMATE_FILE\)\n {2}→ /);
});

vmTest('bench measures launches and shows their steps', async (t) => {
  const { code, stdout, stderr } = await casemate(['bench', '--launches', '3', '--memory', '32']);
  t.is(code, 0, stderr);
  t.regex(stdout.toString(), /^3 launches, µs +least +p50/);
  t.regex(stdout.toString(), /^monitor +createVm +\d+ +\d+ +\d+ +[█▏▎▍▌▋▊▉]/m);
});

vmTest('bench --json prints one object', async (t) => {
  const { code, stdout } = await casemate(['bench', '-n', '2', '--json']);
  t.is(code, 0);
  const { first, launch, doorbell, steps } = JSON.parse(stdout.toString());
  t.true(first > 0 && launch.n === 2 && doorbell.max <= launch.max);
  t.true(steps.some(({ where, name }: { where: string; name: string }) => where === 'monitor' && name === 'guest'));
});
