/**
 * Linux as the README has it: this machine's own kernel, a root of busybox, the strict jail. Two guests at the same time,
 * for CI has all of this in every run.
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { copyFileSync, mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { release, tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { text } from 'node:stream/consumers';
import test from 'ava';
import type { Evidence } from 'casemate';

const commandLine = resolve('lib/cli/main.js');
const folder = mkdtempSync(join(tmpdir(), 'casemate-readme-'));
const words = 'words that only the command prints';

/** In the folder that has the root. */
async function node(...args: string[]) {
  const child = spawn(process.execPath, args, { cwd: folder });
  child.stdin.end(words);
  const ended = once(child, 'exit');
  const [stdout, stderr, [status]] = await Promise.all([text(child.stdout), text(child.stderr), ended]);
  return { status, stdout, stderr };
}

/** The lines, and the command in them that makes the initrd of a root. */
function readmeLines(): { block: string; command: string } {
  const readme = readFileSync('README.md', 'utf8');
  const [, block = ''] = /^```js\n(import \{ release \} from 'node:os';\n.*?)^```/ms.exec(readme) ?? [];
  const [, command = ''] = /\/\/ casemate (image .*)/.exec(block) ?? [];
  return { block, command };
}

test.before(async (t) => {
  const rootfs = join(folder, 'rootfs');
  for (const path of ['rootfs/bin', 'rootfs/etc', 'node_modules']) mkdirSync(join(folder, path), { recursive: true });
  copyFileSync(join(process.env.CASEMATE_TEST_KERNELS ?? '', 'busybox'), join(rootfs, 'bin/busybox'));
  symlinkSync('busybox', join(rootfs, 'bin/sh'));
  writeFileSync(join(rootfs, 'etc/passwd'), 'root:x:0:0::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n');
  symlinkSync(resolve('.'), join(folder, 'node_modules/casemate'));
  const { command } = readmeLines();
  const { status, stderr } = await node(commandLine, ...command.split(' '));
  t.is(status, 0, `${command}: ${stderr}`);
});

test.after.always(() => rmSync(folder, { recursive: true }));

test('the README’s command makes a directory an initrd, and its lines run a command in a Linux', async (t) => {
  writeFileSync(join(folder, 'lines.mjs'), readmeLines().block);
  const { status, stdout, stderr } = await node('lines.mjs');
  t.is(status, 0, stderr);
  t.regex(stdout, /^0 Linux \(none\) /);
  t.true(stdout.includes(` ${release()} `), stdout);
  t.regex(stdout, /^uid=65534\(nobody\) gid=65534/m);
});

test('the command line runs one in the host’s own kernel, in a jail whose every layer is seen', async (t) => {
  const guest = ['--kernel', 'auto', '--initrd', 'root.cpio'];
  const { status, stdout, stderr } = await node(
    ...[commandLine, 'run', ...guest, '--json', '--evidence', '--', 'sh', '-c', 'uname -r; cat; exit 7'],
  );
  t.is(status, 7, stderr);
  const ran = JSON.parse(stdout) as { exit: unknown; stdout: string; evidence: Evidence };
  t.is(ran.stdout, `${release()}\n${words}`);
  t.true(ran.evidence.ok, JSON.stringify(ran.evidence));
  t.deepEqual(ran.exit, { reason: 'poweroff' });
});
