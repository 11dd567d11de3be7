// What was built, held against what is promised of it: how each program is hardened, and on how old a system it loads.
// Flags of the compiler are read from what make ran, all else from the programs, with binutils' readelf.
//
//   node scripts/binaries.js [folder]     default: build/Release; a folder of prebuilt programs has no flags to read
import { spawnSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

const everywhere = ['-fstack-protector-strong', '-fstack-clash-protection', '-ftrivial-auto-var-init=zero'];
const hosted = [...everywhere, '-fcf-protection', '-D_FORTIFY_SOURCE=3', '-D_GLIBCXX_ASSERTIONS'];
// Without a libc there is no FORTIFY. Landing pads are for indirect branch tracking, which Linux has not for programs; a
// shadow stack needs none. Bounds checks of _GLIBCXX_ASSERTIONS touch another page at every start: the same sources
// have them in the unit tests and under the fuzzers.
const freestanding = [...everywhere, '-mstack-protector-guard=global', '-fPIE'];

/** By their paths in a folder: of which targets of make and which groups of native/sources.json, compiled how. */
const programs = {
  'casemate.node': { made: { 'casemate-core': ['core'], casemate: ['addon'] }, flags: [...hosted, '-fPIC'] },
  'casemate-vmm': { made: { 'casemate-vmm': ['machine', 'vmm'] }, flags: freestanding, alone: true },
  'casemate-agent': { made: { 'casemate-agent': ['agent'] }, flags: freestanding, alone: true },
  'unpack/casemate-unpack': {
    made: { 'casemate-unpack': ['unpack', 'unpackProgram'] },
    flags: [...hosted, '-fPIE'],
    alone: true,
  },
};

/** The newest symbols that may be asked of a system: glibc 2.28, which Node needs as well, and gcc 8's libraries. */
const floor = { GLIBC: [2, 28], GLIBCXX: [3, 4, 25], CXXABI: [1, 3, 11], GCC: [7, 0, 0] };

/** What readelf says of a program. */
export function readelf(path) {
  const { stdout, stderr, error, status } = spawnSync('readelf', ['-W', '-h', '-l', '-d', '-V', path], {
    encoding: 'utf8',
    env: { ...process.env, LC_ALL: 'C' },
  });
  if (status !== 0) throw new Error(`readelf ${path}: ${error?.message ?? stderr}`);
  return stdout;
}

const isNewer = (version, than) => {
  const at = version.findIndex((part, index) => part !== (than[index] ?? 0));
  return at >= 0 && version[at] > (than[at] ?? 0);
};

/** Names of symbol versions, `GLIBC_2.34`, that are newer than the floor or that it does not know. */
export function aboveFloor(names) {
  return names.filter((name) => {
    const [, library = '', version = ''] = /^([A-Z]+)_(\d[\d.]*)$/.exec(name) ?? [];
    return floor[library] === undefined || isNewer(version.split('.').map(Number), floor[library]);
  });
}

/** What is wrong with a program, by what readelf says of it; `alone`: a program that no other one loads. */
export function flaws(elf, alone) {
  const segments = [...elf.matchAll(/^ {2}([A-Z_]+) +(?:0x\w+ +){5}([RWE ]{3})/gm)].map(([, type, rights]) => ({
    type,
    rights,
  }));
  const has = (type) => segments.some((segment) => segment.type === type);
  const needed = [...elf.matchAll(/^ +0x\w+: +Name: (\S+)/gm)].map(([, name]) => name);
  const found = {
    'is not at an address of the kernel’s choice (PIE)':
      !/Type: +DYN/.test(elf) || (alone && !/Flags:.* PIE/.test(elf)),
    'has a segment that is both written and executed': segments.some(
      ({ rights }) => /W/.test(rights) && /E/.test(rights),
    ),
    'does not say that its stack is not executed': !has('GNU_STACK'),
    'leaves its tables of addresses writable (RELRO)': !has('GNU_RELRO') || !/\(FLAGS_1\) +Flags:.*\bNOW\b/.test(elf),
    'has text to relocate': /\(TEXTREL\)|\bTEXTREL\b/.test(elf),
    'looks for libraries in a folder of its own': /\((RPATH|RUNPATH)\)/.test(elf),
    'asks for an interpreter or a library': alone && (has('INTERP') || /\(NEEDED\)/.test(elf)),
  };
  const tooNew = aboveFloor([...new Set(needed)]);
  return [
    ...Object.keys(found).filter((flaw) => found[flaw]),
    ...tooNew.map((name) => `needs ${name}, which a system with glibc 2.28 does not have`),
  ];
}

/** How make has compiled the objects of a target: the command of each. */
function commandsOf([target, groups]) {
  const sources = JSON.parse(readFileSync('native/sources.json', 'utf8'));
  return groups
    .flatMap((group) => sources[group])
    .map((source) => `build/Release/.deps/Release/obj.target/${target}/${source.replace(/\.\w+$/, '.o.d')}`)
    .map((path) => readFileSync(path, 'utf8').split('\n', 1)[0]);
}

/** The setting that a flag is one value of: the last one on a command line is the one that counts. */
const settings = [
  /^-[DU]_FORTIFY_SOURCE\b/,
  /^-f(PIE|PIC|pie|pic)$/,
  /^-f(no-)?stack-protector\b/,
  /^-fcf-protection\b/,
];

/** Flags that some of these commands do without, or take back. */
export function missingFlags(commands, flags) {
  return flags.filter((flag) => {
    const setting = settings.find((one) => one.test(flag));
    return commands.some((command) => {
      const words = command.split(' ');
      const counts =
        setting === undefined ? words.find((word) => word === flag) : words.findLast((word) => setting.test(word));
      return counts !== flag;
    });
  });
}

/** Throws with all that is wrong with the programs in a folder. */
export function checkBinaries(folder = 'build/Release') {
  const wrong = Object.entries(programs).flatMap(([name, { made, flags, alone = false }]) => {
    const path = join(folder, name);
    // Where its libraries are missing it is not built; scripts/prebuild.js insists on it.
    if (name === 'unpack/casemate-unpack' && !existsSync(path)) return [];
    const commands = folder === 'build/Release' ? Object.entries(made).flatMap(commandsOf) : [];
    return [
      ...flaws(readelf(path), alone).map((flaw) => `${path} ${flaw}`),
      ...missingFlags(commands, flags).map((flag) => `${path} is compiled without ${flag}`),
    ];
  });
  if (wrong.length > 0) throw new Error(wrong.join('\n'));
}

if (process.argv[1] === fileURLToPath(import.meta.url)) checkBinaries(process.argv[2]);
