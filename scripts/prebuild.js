// Puts what was built where a published package has it: npm carries the binaries,
// so that an installation needs no compiler and runs no script.
import { copyFileSync, existsSync, mkdirSync, readdirSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { checkBinaries } from './binaries.js';
import { allPackages, missingPackages } from './unpack-libraries.js';

process.chdir(fileURLToPath(new URL('..', import.meta.url)));
checkBinaries();
mkdirSync('prebuilds/linux-x64', { recursive: true });
const shipped = /^casemate(\.node|-vmm|-agent|-guest-hello\.elf)$/;
for (const name of readdirSync('build/Release').filter((name) => shipped.test(name))) {
  copyFileSync(`build/Release/${name}`, `prebuilds/linux-x64/${name}`);
}

// In a folder of its own, which becomes its root. It holds libraries of others, whose licenses say that they come along.
const unpack = 'unpack/casemate-unpack';
if (!existsSync(`build/Release/${unpack}`))
  throw new Error(`casemate-unpack was not built: apt-get install ${missingPackages().join(' ')}; npm run build`);
for (const folder of ['unpack', 'licenses']) mkdirSync(`prebuilds/linux-x64/${folder}`, { recursive: true });
copyFileSync(`build/Release/${unpack}`, `prebuilds/linux-x64/${unpack}`);
for (const name of ['libc6-dev', ...allPackages])
  copyFileSync(`/usr/share/doc/${name}/copyright`, `prebuilds/linux-x64/licenses/${name}.txt`);
