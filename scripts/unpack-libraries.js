// The static libraries that casemate-unpack is linked with. Where one is missing, everything else is built without it.
//
//   node scripts/unpack-libraries.js     says "found", or "missing"
import { spawnSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';

/** By the names that the linker knows, the packages of Debian and Ubuntu. */
const packages = { z: 'zlib1g-dev', lzma: 'liblzma-dev', zstd: 'libzstd-dev', lz4: 'liblz4-dev', bz2: 'libbz2-dev' };

/** gcc says where a file lies that it would link, or repeats the name. */
const isThere = (name) =>
  spawnSync('gcc', [`-print-file-name=lib${name}.a`], { encoding: 'utf8' }).stdout?.startsWith('/') ?? false;

/** The packages to install. */
export function missingPackages() {
  return Object.entries(packages).flatMap(([name, one]) => (isThere(name) ? [] : [one]));
}

/** All of them, whose licenses come with the program. */
export const allPackages = Object.values(packages);

if (process.argv[1] === fileURLToPath(import.meta.url))
  process.stdout.write(missingPackages().length === 0 ? 'found' : 'missing');
