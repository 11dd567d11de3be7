/** User namespaces with maps of the caller's choice, as a program in one finds them. */
import { readFileSync, readlinkSync } from 'node:fs';
import type { CasemateError } from 'casemate';
import { steps, userNamespace } from 'casemate/jail';
import { close } from 'casemate/system';
import { requires } from '../helpers/index.js';
import { leaks } from '../helpers/leaks.js';
import { tellsOf } from '../helpers/node.js';
import { spawnReport } from './spawned.js';

const { serial: test } = requires('root', 'programs');
const { serial: testAsUser } = requires('root', 'userns', 'setpriv');

const range = (inside: number, outside: number, count: number) => ({ inside, outside, count });
const mapOf = (pid: number, name: string) =>
  readFileSync(`/proc/${pid}/${name}`, 'utf8').trim().split(/\s+/).map(Number);

test('a user namespace has the maps that were asked for', async (t) => {
  const namespace = userNamespace({
    uids: [range(0, 100_000, 10), range(50, 200_000, 1)],
    gids: [range(7, 300_000, 3)],
    denySetgroups: false,
  });
  try {
    const list = [steps.setns('namespace', 'user'), steps.ids(50, 8)];
    await using started = await spawnReport(list, { descriptors: { namespace } });
    t.deepEqual(mapOf(started.pid, 'uid_map'), [0, 100_000, 10, 50, 200_000, 1]);
    t.deepEqual(mapOf(started.pid, 'gid_map'), [7, 300_000, 3]);
    t.is(readFileSync(`/proc/${started.pid}/setgroups`, 'utf8').trim(), 'allow');
    t.not(readlinkSync(`/proc/${started.pid}/ns/user`), readlinkSync('/proc/self/ns/user'));
    t.regex(readFileSync(`/proc/${started.pid}/status`, 'utf8'), /^Uid:\t200000\t200000\t200000\t200000$/m);
    t.true(started.report.maxNamespaces.net > 0);
  } finally {
    close(namespace);
  }
});

test('in a user namespace that forbids it no namespace can be made', async (t) => {
  const namespace = userNamespace({
    uids: [range(0, 100_000, 1)],
    gids: [range(0, 100_000, 1)],
    forbidNamespaces: true,
  });
  try {
    const list = [steps.setns('namespace', 'user'), steps.ids(0, 0, false)];
    await using started = await spawnReport(list, { descriptors: { namespace } });
    t.deepEqual([...new Set(Object.values(started.report.maxNamespaces))], [0]);
    t.is(readFileSync(`/proc/${started.pid}/setgroups`, 'utf8').trim(), 'deny');
  } finally {
    close(namespace);
  }
});

test('maps that make no sense are refused, and leave nothing behind', async (t) => {
  const gids = [range(0, 0, 1)];
  const wrong: readonly [unknown, string][] = [
    [undefined, 'options'],
    [{ gids }, 'options.uids'],
    [{ uids: [], gids }, 'options.uids'],
    [{ uids: [range(-1, 0, 1)], gids }, 'options.uids[0].inside'],
    [{ uids: [range(0, 0, 0)], gids }, 'options.uids[0].count'],
    [{ uids: [range(0, 2 ** 32, 1)], gids }, 'options.uids[0].outside'],
    [{ uids: gids, gids, forbid: true }, 'options.forbid'],
  ];
  const left = await leaks(() => {
    for (const [options, step] of wrong) {
      const error = t.throws<CasemateError>(() => userNamespace(options as never));
      t.like(error, { code: 'ERR_CASEMATE_INVALID_OPTION', step });
    }
    // Two ranges that overlap: for the kernel to say.
    const error = t.throws<CasemateError>(() => userNamespace({ uids: [range(0, 0, 2), range(1, 9, 1)], gids }));
    t.like(error, { code: 'ERR_CASEMATE_NAMESPACES', errno: -22, syscall: 'write(uid_map)' });
  });
  t.deepEqual(left, []);
});

testAsUser('an ordinary user may map itself, and nobody else', async (t) => {
  const told = await tellsOf(
    `
    import { userNamespace } from 'casemate/jail';
    const attempt = (outside) => {
      const map = [{ inside: 0, outside, count: 1 }];
      try { return typeof userNamespace({ uids: map, gids: [{ inside: 0, outside: process.getgid(), count: 1 }] }); }
      catch (error) { return [error.code, error.errno, error.syscall]; }
    };
    tell([attempt(process.getuid()), attempt(0)]);
    process.exit();
  `,
    { uid: 1234 },
  );
  t.deepEqual(told, ['number', ['ERR_CASEMATE_NAMESPACES', -1, 'write(uid_map)']]);
});
