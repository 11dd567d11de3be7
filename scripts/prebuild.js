// Puts what was built where a published package has it: npm carries the binaries,
// so that an installation needs no compiler and runs no script.
import { copyFileSync, mkdirSync, rmSync, writeFileSync } from 'node:fs';
import { dirname } from 'node:path';
import { fileURLToPath } from 'node:url';
import { checkBinaries } from './binaries.js';
import { billOfMaterials } from './sbom.js';
import { allPackages, missingPackages } from './unpack-libraries.js';

const folder = 'prebuilds/linux-x64';
// The last one in a folder of its own, which becomes its root.
const programs = [
  'casemate.node',
  'casemate-vmm',
  'casemate-agent',
  'casemate-guest-hello.elf',
  'unpack/casemate-unpack',
];

process.chdir(fileURLToPath(new URL('..', import.meta.url)));
if (missingPackages().length > 0)
  throw new Error(`casemate-unpack was not built: apt-get install ${missingPackages().join(' ')}; npm run build`);
checkBinaries();
rmSync(folder, { recursive: true, force: true });
for (const path of programs.map((name) => `${folder}/${name}`)) mkdirSync(dirname(path), { recursive: true });
for (const name of programs) copyFileSync(`build/Release/${name}`, `${folder}/${name}`);

// They hold libraries of others, whose licenses say that they come along.
mkdirSync(`${folder}/licenses`);
copyFileSync('node_modules/node-addon-api/LICENSE.md', `${folder}/licenses/node-addon-api.txt`);
for (const name of ['libc6-dev', ...allPackages])
  copyFileSync(`/usr/share/doc/${name}/copyright`, `${folder}/licenses/${name}.txt`);
writeFileSync(
  `${folder}/sbom.cdx.json`,
  `${JSON.stringify(billOfMaterials(folder, programs, allPackages), null, 2)}\n`,
);
