/** Denials: what the kernel writes of them, and what is said about them. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'ava';
import { adviseOn, type Denial, parseDenial } from 'casemate/selinux';
import { root } from '../helpers/index.js';

const record =
  'audit(1795421493.293:6): avc:  denied  { read write } for  pid=213 comm="casemate-vmm" path="/var/x y" dev="nvme0n1" ' +
  'ino=4 scontext=u:r:casemate_vmm_t:s0:c526,c629 tcontext=u:object_r:var_lib_t:s0 tclass=file permissive=0';

const denial = parseDenial(record) as Denial;

test('a record of audit comes apart', (t) => {
  t.deepEqual(denial, {
    source: 'u:r:casemate_vmm_t:s0:c526,c629',
    target: 'u:object_r:var_lib_t:s0',
    class: 'file',
    permissions: ['read', 'write'],
    enforced: true,
    pid: 213,
    command: 'casemate-vmm',
    path: '/var/x y',
    id: '1795421493.293:6',
  });
});

test('so does a line of the kernel’s log, with names in hexadecimal, and one of a permissive domain', (t) => {
  const line = `5,900,73536558,-;audit: type=1400 ${record.replace('"/var/x y"', '2F0A62').replace('permissive=0', 'permissive=1')}\n`;
  t.like(parseDenial(line), { path: '/\nb', enforced: false, permissions: ['read', 'write'] });
});

test('what is none of a denial is none, and what is cut short neither', (t) => {
  for (const text of ['', 'audit: type=1403', record.slice(0, 60), record.replace(/tclass=\w+/, '')]) {
    t.is(parseDenial(text), undefined, text);
  }
  t.is(parseDenial(record.replace('denied', 'granted')), undefined);
});

test('whatever a guest has its threads and files called, the contexts are the kernel’s', (t) => {
  // The kernel writes names with quotes or blanks in them in hexadecimal, so these cannot come from one.
  const named = parseDenial(record.replace('"/var/x y"', Buffer.from('a" scontext=x').toString('hex').toUpperCase()));
  t.is(named?.source, denial.source);
  t.is(named?.path, 'a" scontext=x');
});

test('advice has the smallest rule', (t) => {
  const { rule, boolean, warning, tried } = adviseOn({ ...denial, permissions: ['getattr'] });
  t.is(rule, '(allow casemate_vmm_t var_lib_t (file (getattr)))');
  t.is(boolean, undefined);
  t.is(warning, undefined);
  const where = 'the file /var/x y, labelled u:object_r:var_lib_t:s0';
  t.is(tried, `A monitor (s0:c526,c629, process 213) tried to look at ${where}`);
  const own = adviseOn({ ...denial, class: 'process', permissions: ['setrlimit'], target: denial.source });
  t.is(own.rule, '(allow casemate_vmm_t self (process (setrlimit)))');
});

test('what was tried is said in words, and in the kernel’s where there are no better ones', (t) => {
  const cases: [Partial<Denial>, string][] = [
    [{ permissions: ['read', 'write', 'append'] }, 'read, write and append to the file /var/x y'],
    [{ class: 'dir', permissions: ['search'], path: undefined }, 'look into the folder'],
    [{ class: 'process', permissions: ['ptrace'], path: undefined }, 'trace a process'],
    [{ class: 'capability', permissions: ['sys_admin'] }, 'use the capability sys_admin'],
    [{ class: 'user_namespace', permissions: ['create'], path: undefined }, 'make a user namespace'],
    [{ class: 'tcp_socket', permissions: ['name_connect'], path: undefined }, 'name_connect a tcp socket'],
  ];
  for (const [one, words] of cases)
    t.regex(adviseOn({ ...denial, ...one }).tried, new RegExp(`tried to ${words}(,|$)`));
});

test('no name of a guest’s reaches a terminal as more than letters', (t) => {
  const { tried } = adviseOn({ ...denial, path: '/a\x1b[2Jb\nc\u202ed\x9b' });
  t.regex(tried, /the file \/a\\u\{1b\}\[2Jb\\u\{a\}c\\u\{202e\}d\\u\{9b\}, labelled/);
});

test('what would break the isolation has a warning, and what is another VM’s has no rule', (t) => {
  const cases: Partial<Denial>[] = [
    { class: 'process', permissions: ['ptrace'] },
    { class: 'process', permissions: ['execmem'] },
    { class: 'capability', permissions: ['sys_admin'] },
    { class: 'tcp_socket', permissions: ['create'] },
    { class: 'file', permissions: ['open'] },
    { class: 'file', permissions: ['read'], target: 'u:object_r:shadow_t:s0' },
  ];
  for (const one of cases) t.truthy(adviseOn({ ...denial, ...one }).warning, JSON.stringify(one));
  for (const type of ['casemate_vmm_t', 'casemate_image_t']) {
    const { rule, warning } = adviseOn({ ...denial, target: `u:object_r:${type}:s0:c1,c2` });
    t.is(rule, '');
    t.regex(warning ?? '', /another VM/);
    // Its own, or that of no VM in particular, is not another one's.
    for (const level of ['s0:c526,c629', 's0:c526', 's0'])
      t.not(adviseOn({ ...denial, target: `u:object_r:${type}:${level}` }).rule, '');
  }
});

test('a rule that may not be enough says so', (t) => {
  const socket = { ...denial, class: 'unix_stream_socket', target: 'u:r:unconfined_t:s0-s0:c0.c1023' };
  t.regex(adviseOn(socket).warning ?? '', /categories that this VM has not/);
  t.is(adviseOn({ ...socket, target: 'u:r:unconfined_t:s0' }).warning, undefined);
});

test('of others than monitors it is said what a rule would give them', (t) => {
  const stranger = { ...denial, source: 'u:r:initrc_t:s0', target: 'u:r:casemate_vmm_t:s0:c1,c2', class: 'process' };
  const launching = adviseOn({ ...stranger, permissions: ['transition'] });
  t.is(launching.rule, '(typeattributeset casemate_caller (initrc_t))');
  t.regex(launching.warning ?? '', /launch VMs/);
  t.regex(launching.tried, /^initrc_t \(s0, process 213\) tried to become a process/);
  t.regex(adviseOn({ ...stranger, permissions: ['ptrace'] }).warning ?? '', /a hold on VMs/);
  const service = { ...denial, source: 'u:r:casemate_service_t:s0-s0:c0.c1023' };
  t.regex(adviseOn({ ...service, class: 'capability', permissions: ['sys_module'] }).warning ?? '', /service/);
  t.is(adviseOn({ ...service, permissions: ['open'] }).warning, undefined);
});

test('a boolean of our policy is preferred to a rule, and grants what the policy says', (t) => {
  const policy = readFileSync(join(root, 'policy/casemate.cil'), 'utf8');
  for (const [name, target] of [
    ['casemate_kvm', 'kvm_device_t'],
    ['casemate_tun', 'tun_tap_device_t'],
  ]) {
    const [, permissions = ''] =
      new RegExp(`booleanif ${name}\\s+\\(true \\(allow casemate_vmm_t ${target} \\(chr_file \\(([^)]*)`).exec(
        policy,
      ) ?? [];
    const device = { ...denial, class: 'chr_file', target: `u:object_r:${target}:s0` };
    t.is(adviseOn({ ...device, permissions: permissions.split(' ') }).boolean, name);
    t.is(adviseOn({ ...device, permissions: ['open'] }).boolean, undefined);
    t.is(adviseOn({ ...device, source: 'u:r:initrc_t:s0', permissions: ['read'] }).boolean, undefined);
  }
});
