import { closeSync, openSync, readdirSync, readlinkSync } from 'node:fs';
import test from 'ava';
import { Capability, GuestMemory, Kvm } from 'casemate/kvm';
import { CasemateError } from '#lib/errors.js';
import { decodeCpuid } from '#lib/kvm/cpuid.js';
import { native } from '#lib/native.js';
import { requires } from '../helpers/index.js';

const withKvm = requires('kvm');

test('a missing /dev/kvm is a typed error', (t) => {
  const error = t.throws(() => Kvm.open({ path: '/nonexistent/kvm' }), { instanceOf: CasemateError });
  t.like(error, { code: 'ERR_CASEMATE_KVM_UNAVAILABLE', syscall: 'open', errno: -2 });
  t.truthy(error.remedy);
});

test('a device that is not KVM is a typed error', (t) => {
  const error = t.throws(() => Kvm.open({ path: '/dev/null' }), { instanceOf: CasemateError });
  t.like(error, { code: 'ERR_CASEMATE_KVM_UNAVAILABLE', syscall: 'ioctl(KVM_GET_API_VERSION)' });
});

test('options that cannot be are refused', (t) => {
  for (const options of [
    { path: 1 },
    { fd: -1 },
    { fd: '3' },
    { path: '/dev/kvm', fd: 3 },
    { path: 'a\0b' },
    { pth: 'x' },
    null,
  ]) {
    t.throws(() => Kvm.open(options as never), { code: 'ERR_CASEMATE_INVALID_OPTION' });
  }
  t.throws(() => Kvm.open({ fd: 0x7fffffff }), { code: 'ERR_CASEMATE_KVM_UNAVAILABLE' });
});

test('memory comes in whole pages', (t) => {
  for (const size of [0, -4096, 4095, 4097, 1.5, Number.NaN, '4096', 2 ** 50]) {
    t.throws(() => new GuestMemory(size as never), { code: 'ERR_CASEMATE_INVALID_OPTION' });
  }
  const memory = new GuestMemory(8192);
  t.is(memory.size, 8192);
  t.true(memory.bytes().every((byte) => byte === 0));
  t.is(memory.bytes(4096).length, 4096);
});

withKvm('a descriptor handed in is duplicated', (t) => {
  const fd = openSync('/dev/kvm', 'r+');
  const kvm = Kvm.open({ fd });
  closeSync(fd);
  t.true(kvm.checkExtension(Capability.userMemory) > 0);
  kvm.close();
});

withKvm('capabilities, CPUID and MSR lists are there', (t) => {
  using kvm = Kvm.open();
  t.is(kvm.checkExtension(Capability.irqchip), 1);
  t.is(kvm.checkExtension(0xffffff), 0);
  const cpuid = kvm.getSupportedCpuid();
  t.true(cpuid.some((entry) => entry.function === 0 && entry.eax > 0));
  t.true(Array.isArray(kvm.getEmulatedCpuid()));
  const msrs = kvm.getMsrIndexList();
  t.true(msrs.includes(0x10), 'the TSC');
  const features = kvm.getMsrFeatureIndexList();
  const values = kvm.getMsrFeatures(features);
  t.true(values.length <= features.length);
  t.deepEqual(kvm.getMsrFeatures([0xdeadbeef]), []);
});

withKvm('the supported CPUID of a bare descriptor is the same, and the descriptor stays open', (t) => {
  const fd = openSync('/dev/kvm', 'r+');
  using kvm = Kvm.open();
  t.deepEqual(
    decodeCpuid(native.kvmSupportedCpuid(fd)).map((entry) => entry.function),
    kvm.getSupportedCpuid().map((entry) => entry.function),
  );
  closeSync(fd);
  t.throws(() => native.kvmSupportedCpuid(fd), { code: 'EBADF' });
});

withKvm('everything throws after close, and closing again does nothing', (t) => {
  const kvm = Kvm.open();
  const vm = kvm.createVm();
  const vcpu = vm.createVcpu();
  const closed = { code: 'ERR_CASEMATE_CLOSED' };
  vcpu.close();
  vcpu.close();
  t.throws(() => vcpu.getRegs(), closed);
  t.throws(() => vcpu.interrupt(), closed);
  vm.close();
  vm.close();
  t.throws(() => vm.createVcpu(), closed);
  t.throws(() => vm.getClock(), closed);
  kvm.close();
  kvm.close();
  t.throws(() => kvm.createVm(), closed);
  t.throws(() => kvm.checkExtension(0), closed);
});

withKvm('closing the machine closes its vCPUs', async (t) => {
  using kvm = Kvm.open();
  const vm = kvm.createVm();
  const vcpu = vm.createVcpu();
  vm.close();
  t.throws(() => vcpu.getRegs(), { code: 'ERR_CASEMATE_CLOSED' });
  await t.throwsAsync(vcpu.run(), { code: 'ERR_CASEMATE_CLOSED' });
});

withKvm.serial('using gives every descriptor back', async (t) => {
  const descriptors = () =>
    readdirSync('/proc/self/fd').filter((fd) => {
      try {
        return /kvm/.test(readlinkSync(`/proc/self/fd/${fd}`));
      } catch {
        return false;
      }
    }).length;
  const before = descriptors();
  {
    await using kvm = Kvm.open();
    await using vm = kvm.createVm();
    await using _vcpu = vm.createVcpu();
    t.is(descriptors(), before + 3);
  }
  t.is(descriptors(), before);
});

withKvm('what the kernel refuses names the ioctl', (t) => {
  using kvm = Kvm.open();
  using vm = kvm.createVm();
  vm.createVcpu(0);
  const error = t.throws(() => vm.createVcpu(0), { instanceOf: CasemateError });
  t.like(error, { code: 'ERR_CASEMATE_KVM', syscall: 'ioctl(KVM_CREATE_VCPU)', errno: -17 });
  t.like(error.cause, { code: 'EEXIST' });
  t.throws(() => vm.getPit2(), { code: 'ERR_CASEMATE_KVM' });
});
