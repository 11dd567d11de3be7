import { CasemateError, type ErrorCode, isSystemError } from '../errors.js';
import { descriptor, integer, invalid, object, string } from '../is.js';
import { native } from '../native.js';
import { closed, kvmCall, maxU32 } from './common.js';
import { type CpuidEntry, decodeCpuid } from './cpuid.js';
import { decodeEntries, u32 } from './layout.js';
import { readMsrs } from './msrs.js';
import type { KvmHandle } from './native.js';
import type { Msr } from './state.js';
import { VirtualMachine } from './vm.js';

/** Where `/dev/kvm` comes from. */
export interface KvmOptions {
  /** The device's path, `'/dev/kvm'` by default. */
  path?: string;
  /** Or an open descriptor of it. It is duplicated: yours stays yours. */
  fd?: number;
}

/** The API version that KVM has had since 2007. */
const apiVersion = 12;

const unavailable = 'Load kvm_intel or kvm_amd; inside a virtual machine, have its host enable nested virtualization.';

/**
 * KVM itself: an open `/dev/kvm`.
 *
 * What is built from here on runs **in this process**: nothing of it is jailed, and a guest is held by KVM
 * alone. For tests, tools and monitors of one's own; `launch()` gives each guest a jailed process.
 *
 * All methods throw {@link CasemateError}: `ERR_CASEMATE_KVM` where the kernel refuses (`cause` names the
 * ioctl and the errno), `ERR_CASEMATE_CLOSED` after `close()`, `ERR_CASEMATE_INVALID_OPTION` for arguments
 * that cannot be.
 */
export class Kvm implements Disposable, AsyncDisposable {
  #handle: KvmHandle | undefined;

  private constructor(handle: KvmHandle) {
    this.#handle = handle;
  }

  /**
   * Opens KVM (open(2), KVM_GET_API_VERSION).
   *
   * @throws CasemateError `ERR_CASEMATE_KVM_UNAVAILABLE` where there is none, or what was given is
   *   something else; `ERR_CASEMATE_KVM_FORBIDDEN` where this user may not open it.
   */
  static open(options: KvmOptions = {}): Kvm {
    object('options', options, ['path', 'fd']);
    if (options.path !== undefined && options.fd !== undefined) {
      throw invalid('options.fd', 'either a path or a descriptor, not both', options.fd);
    }
    const source =
      options.fd === undefined
        ? string('options.path', options.path ?? '/dev/kvm')
        : descriptor('options.fd', options.fd);
    let handle: KvmHandle | undefined;
    try {
      handle = new native.KvmHandle(source);
      const version = handle.getApiVersion();
      if (version === apiVersion) return new Kvm(handle);
      throw new CasemateError('ERR_CASEMATE_KVM_UNAVAILABLE', `KVM has API version ${version}, not ${apiVersion}`, {
        remedy: 'Use a Linux kernel of this century.',
      });
    } catch (cause) {
      handle?.close();
      if (!isSystemError(cause)) throw cause;
      const forbidden = cause.code === 'EACCES' || cause.code === 'EPERM';
      const code: ErrorCode = forbidden ? 'ERR_CASEMATE_KVM_FORBIDDEN' : 'ERR_CASEMATE_KVM_UNAVAILABLE';
      const remedy = forbidden ? 'Add this user to the group of the device, usually kvm.' : unavailable;
      throw new CasemateError(code, `KVM cannot be opened: ${cause.message}`, { cause, remedy });
    }
  }

  /**
   * KVM_CHECK_EXTENSION.
   *
   * @param capability - One of {@link Capability}, or another KVM_CAP_* number.
   * @returns 0: not there; otherwise 1, or a number whose meaning belongs to the capability.
   */
  checkExtension(capability: number): number {
    integer('capability', capability, 0, maxU32);
    return kvmCall(() => this.#open.checkExtension(capability));
  }

  /** What this host's KVM can show guests of CPUID (KVM_GET_SUPPORTED_CPUID); takes about 0.3 ms. See `guestCpuid`. */
  getSupportedCpuid(): CpuidEntry[] {
    return decodeCpuid(kvmCall(() => this.#open.getSupportedCpuid()));
  }

  /** What it could show besides, at the price of emulation (KVM_GET_EMULATED_CPUID). */
  getEmulatedCpuid(): CpuidEntry[] {
    return decodeCpuid(kvmCall(() => this.#open.getEmulatedCpuid()));
  }

  /** Indices of the MSRs that a vCPU's state consists of (KVM_GET_MSR_INDEX_LIST). */
  getMsrIndexList(): number[] {
    return decodeEntries(
      u32,
      kvmCall(() => this.#open.getMsrIndexList()),
    );
  }

  /** Indices of the MSRs that tell features of the host (KVM_GET_MSR_FEATURE_INDEX_LIST). */
  getMsrFeatureIndexList(): number[] {
    return decodeEntries(
      u32,
      kvmCall(() => this.#open.getMsrFeatureIndexList()),
    );
  }

  /** Their values (KVM_GET_MSRS of the system). Those that cannot be read are left out. */
  getMsrFeatures(indices: readonly number[]): Msr[] {
    return readMsrs(indices, (msrs) => this.#open.getMsrs(msrs));
  }

  /** Creates a virtual machine without memory and without vCPUs (KVM_CREATE_VM); takes about 0.3 ms. */
  createVm(): VirtualMachine {
    return new VirtualMachine(kvmCall(() => new native.VmHandle(this.#open)));
  }

  /** Closes the descriptor. Virtual machines live on. */
  close(): void {
    this.#handle?.close();
    this.#handle = undefined;
  }

  /** {@link Kvm.close}, as the end of a `using` scope. */
  [Symbol.dispose](): void {
    this.close();
  }

  /** {@link Kvm.close}, as the end of an `await using` scope. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.close();
  }

  get #open(): KvmHandle {
    if (this.#handle === undefined) throw closed('Kvm');
    return this.#handle;
  }
}
