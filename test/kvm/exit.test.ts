import test from 'ava';
import { Exchange } from '#lib/kvm/exit.js';

/** An exchange buffer as the kernel would leave it: 8, 16, 32 and 64-bit fields by offset. */
function exchange(
  reason: number,
  fields: {
    u8?: Record<number, number>;
    u16?: Record<number, number>;
    u32?: Record<number, number>;
    u64?: Record<number, bigint>;
  } = {},
): Exchange {
  const made = new Exchange();
  const view = new DataView(made.bytes.buffer);
  view.setUint32(8, reason, true);
  for (const [offset, value] of Object.entries(fields.u8 ?? {})) view.setUint8(Number(offset), value);
  for (const [offset, value] of Object.entries(fields.u16 ?? {})) view.setUint16(Number(offset), value, true);
  for (const [offset, value] of Object.entries(fields.u32 ?? {})) view.setUint32(Number(offset), value, true);
  for (const [offset, value] of Object.entries(fields.u64 ?? {})) view.setBigUint64(Number(offset), value, true);
  return made;
}

test('exits without details', (t) => {
  const reasons = { 5: 'hlt', 7: 'irqWindowOpen', 8: 'shutdown', 31: 'dirtyRingFull' };
  for (const [number, reason] of Object.entries(reasons)) {
    t.deepEqual(exchange(Number(number)).read() as unknown, { reason });
  }
  t.deepEqual(exchange(37).read(), { reason: 'other', number: 37 });
});

test('failEntry, debug, systemEvent and ioapicEoi', (t) => {
  t.deepEqual(exchange(9, { u64: { 32: 0x80000021n }, u32: { 40: 3 } }).read(), {
    reason: 'failEntry',
    hardwareReason: 0x80000021n,
    cpu: 3,
  });
  t.deepEqual(exchange(4, { u32: { 32: 1 }, u64: { 40: 0x1000n, 48: 0x4000n, 56: 0x400n } }).read(), {
    reason: 'debug',
    exception: 1,
    pc: 0x1000n,
    dr6: 0x4000n,
    dr7: 0x400n,
  });
  t.deepEqual(exchange(24, { u32: { 32: 2, 36: 1 }, u64: { 40: 7n } }).read(), {
    reason: 'systemEvent',
    type: 2,
    data: [7n],
  });
  t.deepEqual(exchange(26, { u8: { 32: 0x31 } }).read(), { reason: 'ioapicEoi', vector: 0x31 });
});

test('an instruction that KVM cannot emulate is told by its bytes', (t) => {
  const fields = { u32: { 32: 1, 36: 4 }, u64: { 40: 1n }, u8: { 48: 3, 49: 0x0f, 50: 0xc7, 51: 0x0d } };
  t.like(exchange(17, fields).read(), {
    reason: 'internalError',
    suberror: 1,
    instruction: Uint8Array.of(0x0f, 0xc7, 0x0d),
  });
  t.like(exchange(17, { u32: { 32: 3, 36: 2 }, u64: { 40: 1n, 48: 2n } }).read(), {
    suberror: 3,
    data: [1n, 2n],
    instruction: undefined,
  });
});

test('counts are cut to what the structure holds', (t) => {
  const error = exchange(17, { u32: { 32: 1, 36: 0xffffffff }, u64: { 40: 1n }, u8: { 48: 255 } }).read();
  t.is(error.reason === 'internalError' && error.data.length, 16);
  t.is(error.reason === 'internalError' && error.instruction?.length, 15);
  const io = exchange(2, { u8: { 32: 0, 33: 4 }, u32: { 36: 0xffffffff } }).read();
  t.is(io.reason === 'io' && io.data.length, 4096);
  const mmio = exchange(6, { u32: { 48: 200 } }).read();
  t.is(mmio.reason === 'mmio' && mmio.data.length, 8);
});

test('answers land where the kernel reads them', (t) => {
  const msr = exchange(29, { u32: { 40: 2, 44: 0x1234 }, u64: { 48: 99n } });
  const rdmsr = msr.read();
  t.deepEqual(rdmsr, { reason: 'rdmsr', cause: 'unknown', index: 0x1234, value: 0n, fault: false });
  Object.assign(rdmsr, { value: 5n, fault: true });
  msr.answer(rdmsr);
  t.is(new DataView(msr.bytes.buffer).getBigUint64(48, true), 5n);
  t.is(msr.bytes[32], 1);

  t.like(exchange(30, { u32: { 40: 4, 44: 0x10 }, u64: { 48: 99n } }).read(), {
    reason: 'wrmsr',
    cause: 'filter',
    value: 99n,
  });

  const call = exchange(3, { u64: { 32: 12n, 40: 1n, 80: 6n }, u32: { 96: 1 } });
  const hypercall = call.read();
  t.deepEqual(hypercall, {
    reason: 'hypercall',
    number: 12n,
    args: [1n, 0n, 0n, 0n, 0n, 6n],
    longMode: true,
    result: 0n,
  });
  Object.assign(hypercall, { result: 42n });
  call.answer(hypercall);
  t.is(new DataView(call.bytes.buffer).getBigUint64(88, true), 42n);
});

test('an answer of the wrong form is refused', (t) => {
  const io = exchange(2, { u8: { 32: 0, 33: 1 }, u16: { 34: 0x10 }, u32: { 36: 2 } });
  const exit = io.read();
  t.like(exit, { reason: 'io', direction: 'in', port: 0x10, size: 1, count: 2, data: Uint8Array.of(0xff, 0xff) });
  for (const data of [Uint8Array.of(1), [1, 2], 'ab', undefined]) {
    t.throws(() => io.answer({ ...exit, data } as never), { code: 'ERR_CASEMATE_INVALID_OPTION' });
  }
  const msr = exchange(29);
  t.throws(() => msr.answer({ ...msr.read(), value: 1 } as never), { code: 'ERR_CASEMATE_INVALID_OPTION' });
  t.throws(() => msr.answer({ ...msr.read(), fault: 1 } as never), { code: 'ERR_CASEMATE_INVALID_OPTION' });
});
