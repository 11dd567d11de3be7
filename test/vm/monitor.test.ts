/** The monitor's binary. */
import { readFileSync } from 'node:fs';
import test from 'ava';
import { builtFile } from '#lib/native.js';

const programHeaderSize = 56;
const dynamic = 2; // PT_DYNAMIC
const relocations: Readonly<Record<number, string>> = { 7: 'DT_RELA', 17: 'DT_REL', 23: 'DT_JMPREL', 36: 'DT_RELR' };

// Constant data with addresses in it (virtual tables, tables of strings or of functions) would be relocated at the start
// of every monitor: pages that launches of guests without devices have no other reason to touch.
test('the monitor has nothing to relocate when it starts', (t) => {
  const elf = readFileSync(builtFile('casemate-vmm'));
  const headers = Number(elf.readBigUInt64LE(32));
  const found: string[] = [];
  let tables = 0;
  for (let i = 0; i < elf.readUInt16LE(56); i += 1) {
    const header = headers + i * programHeaderSize;
    if (elf.readUInt32LE(header) !== dynamic) continue;
    tables += 1;
    const start = Number(elf.readBigUInt64LE(header + 8));
    const end = start + Number(elf.readBigUInt64LE(header + 32));
    for (let at = start; at < end; at += 16) {
      const name = relocations[Number(elf.readBigUInt64LE(at))];
      if (name !== undefined) found.push(name);
    }
  }
  t.is(tables, 1);
  t.deepEqual(found, []);
});
