import test from 'ava';
import { CasemateError } from '#lib/errors.js';
import { array, at, bytes, decodeEntries, encode, encodeTable, struct, u8, u16, u32, u64 } from '#lib/kvm/layout.js';
import * as state from '#lib/kvm/state.js';

test('fields lie where C puts them', (t) => {
  const layout = struct({ a: u8, b: u64, c: u16, d: array(u32, 2), e: at(40, u8), f: bytes(3) });
  t.is(layout.size, 48);
  const value = { a: 1, b: 2n, c: 3, d: [4, 5], e: 6, f: Uint8Array.of(7, 8, 9) };
  const memory = encode(layout, value, 'value');
  const view = new DataView(memory.buffer);
  t.is(view.getUint8(0), 1);
  t.is(view.getBigUint64(8, true), 2n);
  t.is(view.getUint16(16, true), 3);
  t.is(view.getUint32(24, true), 5);
  t.is(view.getUint8(40), 6);
  t.is(view.getUint8(43), 9);
  t.deepEqual(layout.read(view, 0), value);
});

test('the structures have the sizes of the kernel', (t) => {
  const sizes = Object.fromEntries(
    Object.entries(state).flatMap(([name, layout]) =>
      typeof layout === 'object' && 'read' in layout ? [[name, layout.size]] : [],
    ),
  );
  t.deepEqual(sizes, {
    clock: 48,
    debugRegs: 128,
    dirtyPage: 16,
    fpu: 416,
    guestDebug: 72,
    ioeventfd: 64,
    irqRoutingEntry: 48,
    irqchip: 520,
    irqfd: 32,
    msi: 32,
    msr: 16,
    pitConfig: 64,
    regs: 144,
    sregs: 312,
    sregs2: 320,
    translation: 24,
    vcpuEvents: 64,
    xcrs: 392,
  });
});

test('values that do not fit are refused by name', (t) => {
  const layout = struct({ inner: struct({ byte: u8, list: array(u64, 2) }) });
  const refused: [unknown, string][] = [
    [{ inner: { byte: 256, list: [0n, 0n] } }, 'value.inner.byte'],
    [{ inner: { byte: -1, list: [0n, 0n] } }, 'value.inner.byte'],
    [{ inner: { byte: 1n, list: [0n, 0n] } }, 'value.inner.byte'],
    [{ inner: { byte: 0, list: [0n] } }, 'value.inner.list'],
    [{ inner: { byte: 0, list: [0n, 2n ** 64n] } }, 'value.inner.list[1]'],
    [{ inner: { byte: 0, list: [0n, -1n] } }, 'value.inner.list[1]'],
    [{ inner: { byte: 0, list: [0n, 1] } }, 'value.inner.list[1]'],
    [{ inner: { byte: 0, list: [0n, 0n], bite: 0 } }, 'value.inner.bite'],
    [{ inner: { list: [0n, 0n] } }, 'value.inner.byte'],
    [{}, 'value.inner'],
    [null, 'value'],
  ];
  for (const [value, step] of refused) {
    const error = t.throws(() => encode(layout, value as never, 'value'), { instanceOf: CasemateError });
    t.is(error.code, 'ERR_CASEMATE_INVALID_OPTION');
    t.is(error.step, step);
  }
});

test('tables have their count in front', (t) => {
  const memory = encodeTable(state.msr, [{ index: 0x10, value: 5n }], 'msrs');
  t.is(memory.byteLength, 24);
  t.is(memory[0], 1);
  t.deepEqual(decodeEntries(state.msr, memory, 8), [{ index: 0x10, value: 5n }]);
});
