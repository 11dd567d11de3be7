/** Where `casemate run --kernel auto` looks. */
import { chmodSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { CasemateError } from 'casemate';
import { hostKernel } from '#lib/cli/host-kernel.js';
import { requires } from './helpers/index.js';
import { tellsOf } from './helpers/node.js';

/** A folder with these files, which goes with the test. */
function host(t: ExecutionContext, ...paths: string[]): string {
  const folder = mkdtempSync(join(tmpdir(), 'casemate-host-'));
  t.teardown(() => rmSync(folder, { recursive: true }));
  chmodSync(folder, 0o755);
  for (const path of paths) {
    mkdirSync(dirname(join(folder, path)), { recursive: true });
    writeFileSync(join(folder, path), 'kernel');
  }
  return folder;
}

test('it is the one in /boot, or where other distributions have it', (t) => {
  const [debian, fedora, nixos] = ['boot/vmlinuz-6.12.1', 'lib/modules/6.12.1/vmlinuz', 'run/booted-system/kernel'];
  t.is(
    hostKernel('6.12.1', host(t, 'boot/vmlinuz-6.1.0', debian, fedora))
      .split('/')
      .slice(-2)
      .join('/'),
    debian,
  );
  for (const path of [fedora, nixos]) {
    const folder = host(t, 'boot/vmlinuz-6.1.0', path);
    t.is(hostKernel('6.12.1', folder), join(folder, path));
  }
});

test('where it is nowhere, the error has all the places', (t) => {
  const error = t.throws(() => hostKernel('6.12.1', host(t)), { instanceOf: CasemateError });
  t.is(error.code, 'ERR_CASEMATE_FILE');
  t.regex(error.message, /\/boot\/vmlinuz-6\.12\.1, .*\/lib\/modules\/6\.12\.1\/vmlinuz/);
  t.regex(error.remedy, /--kernel/);
});

requires('setpriv')('where it is not to be read, as on Ubuntu, the error says how to change that', async (t) => {
  const folder = host(t, 'boot/vmlinuz-6.8.0');
  chmodSync(join(folder, 'boot/vmlinuz-6.8.0'), 0o600);
  const script = `
    const { hostKernel } = await import('#lib/cli/host-kernel.js');
    try { tell(hostKernel('6.8.0', ${JSON.stringify(folder)})); } catch (error) { tell(failure(error)); }
  `;
  const told = await tellsOf<{ code: string; remedy: string }>(script, { uid: 1234 });
  t.is(told.code, 'ERR_CASEMATE_FILE');
  t.regex(told.remedy, /chmod a\+r .*\/boot\/vmlinuz-6\.8\.0/);
});
