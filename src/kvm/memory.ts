import { constants } from 'node:buffer';
import { wrapSystemError } from '../errors.js';
import { integer, invalid } from '../is.js';
import { native } from '../native.js';
import { pageSize } from './common.js';
import type { MemoryHandle } from './native.js';

/** For VirtualMachine, which hands it to the addon. */
export const handles = new WeakMap<GuestMemory, MemoryHandle>();

/** The end of a process's address space on x86-64 (Documentation/arch/x86/x86_64/mm.rst): no memory can be larger. */
const addressSpace = 2 ** 47;

/**
 * Memory of a guest: anonymous pages (mmap(2)), zero at first and taken from the host when touched. The
 * guest sees them where {@link VirtualMachine.setMemorySlot} puts them, JavaScript sees the same bytes in
 * `buffer`, at any time: what a running guest writes there changes under the reader's eyes.
 *
 * It stays mapped as long as anything needs it: this object, `buffer` or a view of it, or a slot of a
 * virtual machine that is not closed. There is nothing to close.
 */
export class GuestMemory {
  /** The bytes. It cannot be transferred to another thread. */
  readonly buffer: ArrayBuffer;

  /**
   * @param sizeBytes - A multiple of 4096, and no more than this Node's `buffer.constants.MAX_LENGTH` or 128 TiB.
   * @throws CasemateError `ERR_CASEMATE_INVALID_OPTION`; `ERR_CASEMATE_SYSTEM` (mmap)
   */
  constructor(sizeBytes: number) {
    integer('sizeBytes', sizeBytes, pageSize, Math.min(constants.MAX_LENGTH, addressSpace));
    if (sizeBytes % pageSize !== 0) throw invalid('sizeBytes', `a multiple of ${pageSize}`, sizeBytes);
    const handle = wrapSystemError('ERR_CASEMATE_SYSTEM', () => new native.MemoryHandle(sizeBytes));
    this.buffer = handle.buffer();
    handles.set(this, handle);
  }

  /** In bytes. */
  get size(): number {
    return this.buffer.byteLength;
  }

  /** A view of a part of it. */
  bytes(offset = 0, length = this.size - offset): Uint8Array {
    return new Uint8Array(this.buffer, offset, length);
  }
}
