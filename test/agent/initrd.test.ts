/** The initrd that brings the agent, and modules of a kernel, into a guest. */
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { CasemateError } from 'casemate';
import { agentInitrd, modulePaths } from '#lib/agent/initrd.js';

/** A folder as depmod leaves it. */
function modules(t: ExecutionContext, dependencies: Readonly<Record<string, string>>, builtIn = ''): string {
  const folder = mkdtempSync(join(tmpdir(), 'casemate-modules-'));
  t.teardown(() => rmSync(folder, { recursive: true }));
  const lines = Object.entries(dependencies).map(([path, others]) => {
    mkdirSync(join(folder, dirname(path)), { recursive: true });
    writeFileSync(join(folder, path), `contents of ${path}`);
    return `${path}:${others && ` ${others}`}\n`;
  });
  writeFileSync(join(folder, 'modules.dep'), lines.join(''));
  writeFileSync(join(folder, 'modules.builtin'), builtIn);
  return folder;
}

const usual = {
  'kernel/virtio/virtio.ko': '',
  'kernel/virtio/virtio_mmio.ko.xz': 'kernel/virtio/virtio_ring.ko kernel/virtio/virtio.ko',
  'kernel/virtio/virtio_ring.ko': 'kernel/virtio/virtio.ko',
  'kernel/vsock/vmw_vsock_virtio_transport.ko': 'kernel/vsock/vsock.ko kernel/virtio/virtio.ko',
  'kernel/vsock/vsock.ko': '',
  'kernel/misc/pvpanic-mmio.ko': 'kernel/misc/pvpanic.ko',
  'kernel/misc/pvpanic.ko': '',
};

const names = (paths: readonly string[]) => paths.map((path) => path.replace(/^.*\//, '')).sort();

test('modules come with all that they need, each once', (t) => {
  const folder = modules(t, usual);
  t.deepEqual(names(modulePaths(folder, ['virtio_mmio', 'vmw_vsock_virtio_transport', 'pvpanic_mmio', 'no_such'])), [
    'pvpanic-mmio.ko',
    'pvpanic.ko',
    'virtio.ko',
    'virtio_mmio.ko.xz',
    'virtio_ring.ko',
    'vmw_vsock_virtio_transport.ko',
    'vsock.ko',
  ]);
});

test('what is built in needs no module; a kernel without vsock is refused', (t) => {
  const { 'kernel/virtio/virtio_mmio.ko.xz': _, ...rest } = usual;
  const wanted = ['virtio_mmio', 'vmw_vsock_virtio_transport'];
  const builtIn = modules(t, rest, 'kernel/drivers/virtio/virtio_mmio.ko\n');
  t.deepEqual(names(modulePaths(builtIn, wanted)), ['virtio.ko', 'vmw_vsock_virtio_transport.ko', 'vsock.ko']);
  const refused = { instanceOf: CasemateError, code: 'ERR_CASEMATE_FILE', message: /virtio_mmio/ } as const;
  t.throws(() => modulePaths(modules(t, rest), wanted), refused);
});

test('an archive has the agent and its modules, and is made once', (t) => {
  const plain = agentInitrd(undefined, []);
  const withModules = agentInitrd(modules(t, usual), ['pvpanic_mmio']);
  t.true(plain.size > 10_000 && plain.size < 110_000, 'the agent stays small');
  t.true(withModules.size > plain.size + 1000);
  t.is(agentInitrd(undefined, []), plain);
});

test('a folder that is none is an error of the option', (t) => {
  const error = t.throws(() => agentInitrd('/nowhere', []), { instanceOf: CasemateError, code: 'ERR_CASEMATE_FILE' });
  t.like(error, { step: 'options.agent.modules', errno: -2 });
});
