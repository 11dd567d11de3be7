// Puts what was built where a published package has it: npm carries the binaries,
// so that an installation needs no compiler and runs no script.
import { copyFileSync, mkdirSync, readdirSync } from 'node:fs';
import { fileURLToPath } from 'node:url';

process.chdir(fileURLToPath(new URL('..', import.meta.url)));
mkdirSync('prebuilds/linux-x64', { recursive: true });
const shipped = /^casemate(\.node|-vmm|-agent|-guest-hello\.elf)$/;
for (const name of readdirSync('build/Release').filter((name) => shipped.test(name))) {
  copyFileSync(`build/Release/${name}`, `prebuilds/linux-x64/${name}`);
}
