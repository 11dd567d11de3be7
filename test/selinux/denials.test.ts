/** Denials: what the kernel writes of them, and what is said about them. */
import test from 'ava';
import { adviseOn, type Denial, parseDenial } from 'casemate/selinux';

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
  const { rule, warning, tried } = adviseOn({ ...denial, permissions: ['getattr'] });
  t.is(rule, '(allow casemate_vmm_t var_lib_t (file (getattr)))');
  t.is(warning, undefined);
  t.regex(tried, /monitor \(s0:c526,c629\) tried: getattr file \/var\/x y/);
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
  }
});
