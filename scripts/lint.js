// Every check counts as a test. A missing tool skips its check, except where CI
// is set: there .ci/run has installed them all.
//
//   node scripts/lint.js [--fix]     --fix: format instead of complaining
import { spawn, spawnSync } from 'node:child_process';
import { readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { checkBinaries } from './binaries.js';
import { conclude, Tally } from './suite.js';
import { unlessSame } from './unless-same.js';

const fix = process.argv.includes('--fix');
const native = ['native', 'examples', 'test', 'bench'].flatMap((folder) =>
  readdirSync(folder, { recursive: true }).map((file) => `${folder}/${file}`),
);
const headers = native.filter((file) => /\.(h|hpp)$/.test(file));
const sources = native.filter((file) => /\.(c|cpp)$/.test(file));
const text = (file) => readFileSync(file, 'utf8');

/** Runs a program to its end; one that fails rejects with all that it said. */
function run(command, ...args) {
  return new Promise((resolve, reject) => {
    const child = spawn(command, args, { stdio: ['ignore', 'pipe', 'pipe'] });
    let output = '';
    for (const stream of [child.stdout, child.stderr]) {
      stream.setEncoding('utf8').on('data', (chunk) => {
        output += chunk;
      });
    }
    child.on('error', reject);
    child.on('close', (code) => (code === 0 ? resolve() : reject(new Error(output))));
  });
}

/** The list of sources and what is on disk are the same: a file that is in neither build is dead. */
function checkSources() {
  const listed = JSON.stringify(JSON.parse(text('native/sources.json')));
  const missing = sources.filter((file) => file.startsWith('native/') && !listed.includes(`"${file}"`));
  if (missing.length > 0) throw new Error(`Not in native/sources.json: ${missing.join(', ')}`);
}

/** clang-tidy reads how each file is compiled from CMake; with clang's flags, for it is one. */
async function checkTidy() {
  const cmakeJs = [
    'node_modules/cmake-js/bin/cmake-js',
    'configure',
    '--prefer-clang',
    '--CDCASEMATE_FUZZ=ON',
    '--out',
    'build/tidy',
  ];
  await run(process.execPath, ...cmakeJs);
  // One command for each file: clang-tidy would look at the machine's twice, as the monitor and hosted.
  const commands = JSON.parse(text('build/tidy/compile_commands.json'));
  const inC = commands.filter(({ file }) => /\.(c|cpp)$/.test(file));
  const byFile = new Map(inC.map((command) => [command.file, command]));
  writeFileSync('build/tidy/compile_commands.json', JSON.stringify([...byFile.values()]));
  const context = ['.clang-tidy', 'bench/.clang-tidy', 'native/test/.clang-tidy', 'CMakeLists.txt', ...headers].map(
    text,
  );
  const queue = new Set(byFile.keys());
  const errors = [];
  const worker = async () => {
    for (const file of queue) {
      queue.delete(file);
      const check = () => run('clang-tidy', '--quiet', '-p', 'build/tidy', file);
      await unlessSame(`build/tidy/checked/${file}`, [text(file), ...context], check).catch((error) => {
        errors.push(error.message);
      });
    }
  };
  await Promise.all(Array.from({ length: availableParallelism() }, worker));
  if (errors.length > 0) throw new Error(errors.join('\n'));
}

const checks = [
  {
    title: 'TypeScript and JavaScript are formatted and free of known mistakes (biome)',
    tools: [],
    check: () =>
      run(
        process.execPath,
        'node_modules/@biomejs/biome/bin/biome',
        'check',
        '--error-on-warnings',
        ...(fix ? ['--write'] : []),
      ),
  },
  {
    title: 'C and C++ are formatted (clang-format)',
    tools: ['clang-format'],
    check: () =>
      run('clang-format', ...(fix ? ['-i'] : ['--dry-run', '-Werror', '--ferror-limit=1']), ...headers, ...sources),
  },
  { title: 'every native source is listed in native/sources.json', tools: [], check: checkSources },
  {
    title: 'what was built is hardened, and loads where there is glibc 2.28 (readelf)',
    tools: ['readelf'],
    check: () => checkBinaries(),
  },
  {
    title: 'C and C++ are free of known mistakes (clang-tidy)',
    tools: ['clang-tidy', 'clang', 'cmake'],
    check: checkTidy,
  },
];

const tally = new Tally();
for (const { title, tools, check } of fix ? checks.slice(0, 2) : checks) {
  const missing = tools.filter((tool) => spawnSync(tool, ['--version']).error !== undefined);
  if (missing.length > 0 && process.env.CI === undefined) {
    tally.say(`ok - ${title} # SKIP not installed: ${missing.join(', ')}`);
    continue;
  }
  try {
    await check();
    tally.say(`ok - ${title}`);
  } catch (error) {
    console.log(error.message);
    tally.say(`not ok - ${title}`);
  }
}
conclude({ lint: tally });
