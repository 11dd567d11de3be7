// The bill of materials of the prebuilt programs: what of others is linked into them, as CycloneDX 1.6. The package has no
// dependencies that npm could tell of. Without a date or a serial number: of the same programs it is the same file.
import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';

/** By source packages of Debian and Ubuntu, the licenses of what is linked of them. */
const licenses = {
  bzip2: 'bzip2-1.0.6',
  gcc: 'GPL-3.0-or-later WITH GCC-exception-3.1',
  glibc: 'LGPL-2.1-or-later',
  libzstd: 'BSD-3-Clause',
  lz4: 'BSD-2-Clause',
  'xz-utils': '0BSD',
  zlib: 'Zlib',
};

function say(command, ...args) {
  const { status, stdout, stderr, error } = spawnSync(command, args, { encoding: 'utf8' });
  if (status !== 0) throw new Error(`${command} ${args.join(' ')}: ${error?.message ?? stderr}`);
  return stdout.trim();
}

/** A component that is a library; `reference` is its package URL. */
const library = (reference, name, version, license) => ({
  type: 'library',
  'bom-ref': reference,
  name,
  version,
  licenses: [license],
  purl: reference,
});

/** The source package that an installed package was built from. */
function debian(name) {
  const [source, version] = say('dpkg-query', '-W', '-f', `\${source:Package} \${source:Version}`, name).split(' ');
  const upstream = source.replace(/-\d+$/, '');
  const distribution = /^ID=(\w+)/m.exec(readFileSync('/etc/os-release', 'utf8'))?.[1] ?? 'debian';
  const reference = `pkg:deb/${distribution}/${source}@${encodeURIComponent(version)}?arch=source`;
  if (licenses[upstream] === undefined) throw new Error(`scripts/sbom.js does not know the license of ${source}`);
  return library(reference, source, version, { expression: licenses[upstream] });
}

/** Who owns the static library that comes with the compiler. */
const compiler = () => say('dpkg-query', '-S', say('gcc', '-print-libgcc-file-name')).split(':')[0];

function npm(name) {
  const { version, license } = JSON.parse(readFileSync(`node_modules/${name}/package.json`, 'utf8'));
  const reference = `pkg:npm/${name}@${version}`;
  return library(reference, name, version, { license: { id: license } });
}

/** Of the programs in a folder, by their names there, and the packages that casemate-unpack is linked with. */
export function billOfMaterials(folder, programs, unpackPackages) {
  const { name, version, license } = JSON.parse(readFileSync('package.json', 'utf8'));
  const reference = `pkg:npm/${name}@${version}`;
  const linked = {
    'casemate.node': [npm('node-addon-api')],
    'unpack/casemate-unpack': ['libc6-dev', compiler(), ...unpackPackages].map(debian),
  };
  const files = programs.map((program) => ({
    type: 'application',
    'bom-ref': program,
    name: program,
    version,
    hashes: [
      {
        alg: 'SHA-256',
        content: createHash('sha256')
          .update(readFileSync(join(folder, program)))
          .digest('hex'),
      },
    ],
  }));
  return {
    bomFormat: 'CycloneDX',
    specVersion: '1.6',
    version: 1,
    metadata: {
      component: library(reference, name, version, { license: { id: license } }),
    },
    components: [...files, ...Object.values(linked).flat()],
    dependencies: [
      { ref: reference, dependsOn: programs },
      ...programs.map((program) => ({ ref: program, dependsOn: (linked[program] ?? []).map((one) => one['bom-ref']) })),
    ],
  };
}
