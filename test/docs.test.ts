/**
 * The documents, held against the code.
 *
 * Every block of ts, js or sh in them is run, in a folder that has casemate installed and the guests of
 * examples/guests built. A block that cannot be run says why in a comment above it: `<!-- not run: why -->`; one that
 * runs only here and there says what it needs: `<!-- needs: root -->`. A block under `<!-- prints -->` is what the one
 * before it prints, to the letter.
 */
import { spawn, spawnSync } from 'node:child_process';
import {
  chmodSync,
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { basename, dirname, join, relative } from 'node:path';
import ava from 'ava';
import { CasemateError, launch } from 'casemate';
import { layerNames } from 'casemate/jail';
import ts from 'typescript';
import { type Capability, requires, root } from './helpers/index.js';
import { ends } from './soak/ends.js';
import { launches } from './soak/launches.js';

interface Block {
  /** Of the document and the line of the block: `'README.md:12'`. */
  readonly name: string;
  readonly language: string;
  readonly text: string;
  /** Why it is not run. */
  readonly excuse: string | undefined;
  /** What it needs of the host besides KVM. */
  readonly needs: readonly Capability[];
  /** What it prints, where the document says so. */
  prints?: string;
}

interface Document {
  /** Relative to the top folder. */
  readonly path: string;
  /** Without the contents of its blocks. */
  readonly prose: string;
  readonly blocks: readonly Block[];
}

function readDocument(path: string): Document {
  const prose: string[] = [];
  const blocks: Block[] = [];
  let open: { fence: string; line: number; language: string; lines: string[]; comment: string } | undefined;
  const lines = readFileSync(join(root, path), 'utf8').split('\n');
  lines.forEach((line, index) => {
    const [, indent = '', fence, language = ''] = /^( *)(`{3,})(\w*)/.exec(line) ?? [];
    if (open === undefined && fence !== undefined) {
      const comment = lines.slice(0, index).findLast((before) => before !== '') ?? '';
      open = { fence: indent + fence, line: index + 1, language, lines: [], comment };
    } else if (open !== undefined && line === open.fence) {
      const text = `${open.lines.join('\n')}\n`;
      const last = blocks.at(-1);
      if (/<!-- prints -->/.test(open.comment) && last !== undefined) last.prints = text;
      const excuse = /<!-- not run: (.+) -->/.exec(open.comment)?.[1];
      const needs = /<!-- needs: (.+) -->/.exec(open.comment)?.[1]?.split(', ') ?? [];
      blocks.push({
        name: `${path}:${open.line}`,
        language: open.language,
        text,
        excuse,
        needs: needs as Capability[],
      });
      open = undefined;
    } else if (open !== undefined) {
      open.lines.push(line);
    } else {
      prose.push(line);
    }
  });
  if (open !== undefined) throw new Error(`${path}:${open.line}: a block without an end`);
  return { path, prose: prose.join('\n'), blocks };
}

const documents = [
  ...readdirSync(root).filter((name) => name.endsWith('.md')),
  ...readdirSync(join(root, 'docs'))
    .filter((name) => name.endsWith('.md'))
    .map((name) => `docs/${name}`),
].map(readDocument);

function document(path: string): Document {
  const found = documents.find((each) => each.path === path);
  if (found === undefined) throw new Error(`no ${path}`);
  return found;
}

// ---- What is run ------------------------------------------------------------------

/** How the file of a block is run. */
const commands = {
  ts: (file: string) => [process.execPath, join(folder, 'compiled', file.replace(/ts$/, 'js'))],
  js: (file: string) => [process.execPath, join(folder, 'sources', file)],
  sh: (file: string) => ['sh', '-eu', join(folder, 'sources', file)],
};

type Language = keyof typeof commands;

interface Program {
  readonly name: string;
  readonly language: Language;
  readonly text: string;
  readonly needs: readonly Capability[];
  readonly prints: string | undefined;
}

const programs: readonly Program[] = [
  ...documents
    .flatMap(({ blocks }) => blocks)
    .filter(({ language, excuse }) => language in commands && excuse === undefined)
    .map(({ name, language, text, needs, prints }) => ({ name, language: language as Language, text, needs, prints })),
  ...readdirSync(join(root, 'examples'))
    .filter((name) => name.endsWith('.ts'))
    .map((name) => ({
      name: `examples/${name}`,
      language: 'ts' as const,
      text: readFileSync(join(root, 'examples', name), 'utf8'),
      needs: [],
      prints: undefined,
    })),
];

/** The file of a program below the folder that everything runs in. */
const fileOf = ({ name, language }: Program) => `${name.replace(/[/.:]/g, '-')}.${language}`;

mkdirSync(join(root, 'build'), { recursive: true });
/** Inside the package, so that its own name leads to it (Node's self-reference). */
const folder = mkdtempSync(join(root, 'build', 'docs-'));
ava.after.always(() => rmSync(folder, { recursive: true }));

/** What a user's folder has: casemate, its command, and guests that have been built. */
function prepare(): void {
  mkdirSync(join(folder, 'node_modules/.bin'), { recursive: true });
  symlinkSync(root, join(folder, 'node_modules/casemate'));
  const command = join(folder, 'node_modules/.bin/casemate');
  writeFileSync(command, `#!/bin/sh\nexec "${process.execPath}" "${join(root, 'lib/cli/main.js')}" "$@"\n`);
  chmodSync(command, 0o755);
  for (const guest of ['upper', 'sum']) {
    cpSync(join(root, `examples/guests/${guest}.c`), join(folder, `${guest}.c`));
    const flags = '-O2 -ffreestanding -fno-stack-protector -nostdlib -static -no-pie'.split(' ');
    const headers = join(root, 'native/guest');
    const script = join(headers, 'casemate-guest.ld');
    spawnSync('gcc', [...flags, '-I', headers, '-T', script, '-o', `${guest}.elf`, `${guest}.c`], { cwd: folder });
  }
}

/** What tsc has to say of the TypeScript among them, by the file's name. It is compiled into `compiled/` on the way. */
function compile(): ReadonlyMap<string, string[]> {
  const sources = join(folder, 'sources');
  mkdirSync(sources);
  for (const each of programs) writeFileSync(join(sources, fileOf(each)), each.text);
  const { config } = ts.readConfigFile(join(root, 'tsconfig.base.json'), ts.sys.readFile);
  const { options } = ts.parseJsonConfigFileContent(
    {
      ...config,
      compilerOptions: {
        ...config.compilerOptions,
        incremental: false,
        sourceMap: false,
        noUnusedLocals: false, // an example may end where it gets interesting
        rootDir: sources,
        outDir: join(folder, 'compiled'),
      },
    },
    ts.sys,
    root,
  );
  const program = ts.createProgram(
    programs.filter(({ language }) => language === 'ts').map((each) => join(sources, fileOf(each))),
    options,
  );
  const complaints = new Map<string, string[]>();
  for (const { file, messageText } of [...ts.getPreEmitDiagnostics(program), ...program.emit().diagnostics]) {
    const name = basename(file?.fileName ?? '');
    const said = ts.flattenDiagnosticMessageText(messageText, '\n');
    complaints.set(name, [...(complaints.get(name) ?? []), said]);
  }
  return complaints;
}

interface Ended {
  readonly code: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

function run([program, ...args]: readonly string[]): Promise<Ended> {
  const child = spawn(program as string, args, {
    cwd: folder,
    env: { ...process.env, PATH: `${join(folder, 'node_modules/.bin')}:${process.env.PATH}` },
    stdio: ['ignore', 'pipe', 'pipe'],
    timeout: 180_000,
    killSignal: 'SIGKILL',
  });
  let stdout = '';
  let stderr = '';
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    stdout += text;
  });
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    stderr += text;
  });
  return new Promise((resolve, reject) => {
    child.on('error', reject);
    child.on('close', (code) => resolve({ code, stdout, stderr }));
  });
}

let complaints: ReadonlyMap<string, string[]> = new Map();

ava.before(() => {
  prepare();
  complaints = compile();
});

ava('every block of TypeScript, and every example, passes the type checker', (t) => {
  t.deepEqual(Object.fromEntries(complaints), {});
});

for (const program of programs) {
  requires('kvm', 'userns', 'gcc', ...program.needs).serial(`${program.name} runs`, async (t) => {
    const { code, stdout, stderr } = await run(commands[program.language](fileOf(program)));
    t.is(code, 0, stderr);
    if (program.prints !== undefined) t.is(stdout, program.prints);
  });
}

// ---- What is compared -------------------------------------------------------------

ava('a block that is not run says why', (t) => {
  const blocks = documents.flatMap(({ blocks }) => blocks);
  t.deepEqual(
    blocks.filter(({ excuse }) => excuse !== undefined && excuse.length < 10),
    [],
  );
});

/** An anchor as GitHub makes it of a heading. */
function anchorOf(heading: string): string {
  return heading
    .replace(/[`*]/g, '')
    .toLowerCase()
    .replace(/[^\p{L}\p{N}\s_-]/gu, '')
    .replace(/\s/g, '-');
}

function anchors({ prose }: Document): string[] {
  return [...prose.matchAll(/^#+ +(.+)$/gm)].map(([, heading = '']) => anchorOf(heading));
}

ava('every link between the documents, and to a file, leads somewhere', (t) => {
  const dead = documents.flatMap((from) =>
    [...from.prose.matchAll(/\]\(([^)\s]+)\)/g)]
      .map(([, target = '']) => target)
      .filter((target) => !/^[a-z]+:/.test(target))
      .filter((target) => {
        const [path = '', anchor] = target.split('#');
        const to = path === '' ? from.path : relative(root, join(root, dirname(from.path), path));
        if (!existsSync(join(root, to))) return true;
        return anchor !== undefined && !anchors(document(to)).includes(anchor);
      })
      .map((target) => `${from.path}: ${target}`),
  );
  t.deepEqual(dead, []);
});

ava('every attack has something that shows what holds it: a test by its title, or a command', (t) => {
  const { scripts } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')) as {
    scripts: Record<string, string>;
  };
  const scenarios = Object.keys({ ...launches, ...ends });
  const rows = table(document('docs/security.md'), 'Attacker');
  t.true(rows.length > 10);
  for (const cells of rows) {
    const shownBy = cells.at(-1) ?? '';
    const tests = [...shownBy.matchAll(/\]\(\.\.\/([^)]+)\)(?:: “([^”]+)”)?/g)];
    const commands = [...shownBy.matchAll(/`npm run ([\w:]+)(?: -- ([^`]+))?`/g)];
    t.true(tests.length + commands.length > 0, cells.join('|'));
    for (const [, path = '', title] of tests) {
      // Of a fuzzer there is one.
      const words = title ?? (path.endsWith('_fuzz.cpp') ? 'LLVMFuzzerTestOneInput' : undefined);
      t.true(words !== undefined && readFileSync(join(root, path), 'utf8').includes(words), `${path}: ${words}`);
    }
    for (const [, script = '', words = ''] of commands) {
      t.true(scripts[script] !== undefined, script);
      if (script === 'soak') for (const word of words.split(' ')) t.true(scenarios.includes(word), word);
    }
  }
});

/** The rows of the table whose header starts with that word: their cells, the first one without its backquotes. */
function table({ prose }: Document, header: string): string[][] {
  const rows = prose.split('\n');
  const start = rows.findIndex((row) => row.startsWith(`| ${header} |`));
  const end = rows.findIndex((row, index) => index > start && !row.startsWith('|'));
  return rows.slice(start + 2, end).map((row) =>
    row
      .split(/(?<!\\)\|/)
      .slice(1, -1)
      .map((cell, index) => (index === 0 ? cell.trim().replaceAll('`', '') : cell.trim())),
  );
}

const firstCells = (rows: string[][]) => rows.map(([first = '']) => first).sort();

ava("the README's table of errors has every code, with its meaning and its remedy", (t) => {
  const source = readFileSync(join(root, 'src/errors.ts'), 'utf8');
  const [, union = ''] = /export type ErrorCode =(.*?'ERR_\w+');/s.exec(source) ?? [];
  const codes = [...union.matchAll(/^ {2}\| '(\w+)'/gm)].map(([, code = '']) => code);
  t.true(codes.length > 10);
  const rows = table(document('README.md'), 'Code');
  t.deepEqual(firstCells(rows), codes.sort());
  t.true(rows.every((row) => row.length === 3 && row.every((cell) => cell !== '')));
});

ava("the README's table of options has every option of launch()", async (t) => {
  const error = await t.throwsAsync(launch({ nonsense: true } as object), { instanceOf: CasemateError });
  const [, known = ''] = /known are: ([^)]+)/.exec(error?.message ?? '') ?? [];
  t.deepEqual(firstCells(table(document('README.md'), 'Option')), known.split(', ').sort());
});

ava('the table of layers has every layer', (t) => {
  t.deepEqual(firstCells(table(document('docs/jail.md'), 'Layer')), [...layerNames].sort());
});

ava('the changelog has the version of the package', (t) => {
  const { version } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'));
  t.true(document('CHANGELOG.md').prose.includes(version));
});

ava('the API documentation is generated without a warning', async (t) => {
  const typedoc = join(root, 'node_modules/typedoc/bin/typedoc');
  const { code, stdout, stderr } = await run([process.execPath, typedoc, '--options', root, '--emit', 'none']);
  t.is(code, 0, stdout + stderr);
});
