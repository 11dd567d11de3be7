import { accessSync, constants } from 'node:fs';
import { release } from 'node:os';
import { CasemateError, isSystemError } from '../errors.js';

/** Where distributions have the kernel of a version: Debian, Fedora and others; Fedora, Arch; Gentoo; NixOS. */
const places = (version: string): string[] => [
  `/boot/vmlinuz-${version}`,
  `/lib/modules/${version}/vmlinuz`,
  `/boot/kernel-${version}`,
  '/run/booted-system/kernel',
];

/**
 * The file of the kernel that this host runs.
 *
 * @param root - the folder that the host's files are in.
 * @throws CasemateError ERR_CASEMATE_FILE where it is nowhere, or this user may not read it.
 */
export function hostKernel(version = release(), root = ''): string {
  const all = places(version).map((path) => root + path);
  const there = all.filter((path) => isAccessible(path, constants.F_OK));
  const readable = there.find((path) => isAccessible(path, constants.R_OK));
  if (readable !== undefined) return readable;
  const [closed] = there;
  if (closed !== undefined) {
    throw new CasemateError('ERR_CASEMATE_FILE', `This user may not read ${closed}, the host's kernel`, {
      step: 'options.kernel',
      remedy: `Ubuntu keeps its kernels to root: sudo chmod a+r ${closed}, or pass a copy with --kernel.`,
    });
  }
  throw new CasemateError('ERR_CASEMATE_FILE', `The host's kernel ${version} is none of ${all.join(', ')}`, {
    step: 'options.kernel',
    remedy:
      'Pass its path with --kernel. In a container the files of the host are elsewhere: docker run -v /boot:/boot:ro.',
  });
}

function isAccessible(path: string, mode: number): boolean {
  try {
    accessSync(path, mode);
    return true;
  } catch (error) {
    if (isSystemError(error)) return false;
    throw error;
  }
}
