/** Other Node processes: as another user, in other namespaces, to be killed. */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { chmodSync, copyFileSync, cpSync, existsSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { root } from './root.js';

export interface NodeOptions {
  /** User and group that it runs as, with no other groups. Such a Node has a copy of the library that it may read. */
  uid?: number;
  /** A program that starts it: `['unshare', '--mount']`. */
  through?: readonly string[];
  /** Descriptors that it finds at 3, 4..., or nothing there. */
  descriptors?: readonly (number | 'ignore')[];
  /** Arguments, at process.argv[1]... */
  args?: readonly string[];
  /** The package that it resolves 'casemate' to. */
  cwd?: string;
}

/** Where built files lie in a package, and in a checkout. */
const builtFolders = ['prebuilds/linux-x64', 'build/Release'];

/** A copy of the built library, gone with this process. */
function packageCopy(): string {
  const copy = mkdtempSync(join(tmpdir(), 'casemate-copy-'));
  process.once('exit', () => rmSync(copy, { recursive: true }));
  for (const file of ['package.json', 'lib', ...builtFolders].filter((file) => existsSync(join(root, file)))) {
    const filter = (path: string) => !path.includes('obj.target') && !path.endsWith('.a');
    cpSync(join(root, file), join(copy, file), { recursive: true, filter });
  }
  chmodSync(copy, 0o755);
  return copy;
}

let copied: string | undefined;

/** A copy of the built library for users who may not read this one. */
export function publicCopy(): string {
  copied ??= packageCopy();
  return copied;
}

/** A copy of the built library that launches a program of ours where it means its monitor. */
export function packageWithMonitor(program: string): string {
  const copy = packageCopy();
  for (const folder of builtFolders) {
    const monitor = join(copy, folder, 'casemate-vmm');
    if (!existsSync(monitor)) continue;
    rmSync(monitor);
    copyFileSync(program, monitor);
  }
  return copy;
}

/** A copy of the built library without one of its built files. */
export function packageWithout(file: string): string {
  const copy = packageCopy();
  for (const folder of builtFolders) rmSync(join(copy, folder, file), { force: true });
  return copy;
}

/** What every script finds: `tell(value)` is what it has to say. */
const prelude = `
  const tell = (value) => console.log(JSON.stringify(value, (_, item) => (typeof item === 'bigint' ? String(item) : item)));
  const failure = ({ name, code, step, errno, remedy, message }) => ({ name, code, step, errno, remedy, message });
`;

/** A Node that runs a script, an ES module. It resolves 'casemate' and '#lib/'. */
export class OtherNode {
  readonly process: ChildProcess;
  readonly #lines: AsyncIterator<string>;
  #errors = '';

  constructor(script: string, { uid, through = [], descriptors = [], args = [], cwd }: NodeOptions = {}) {
    const become = uid === undefined ? [] : ['setpriv', `--reuid=${uid}`, `--regid=${uid}`, '--clear-groups'];
    const node = [process.execPath, '--input-type=module', '-e', prelude + script, ...args];
    const [command = '', ...rest] = [...through, ...become, ...node];
    this.process = spawn(command, rest, {
      cwd: cwd ?? (uid === undefined ? root : publicCopy()),
      stdio: ['pipe', 'pipe', 'pipe', ...descriptors],
      // It may not write where this process's coverage is collected.
      env: { ...process.env, ...(uid !== undefined && { NODE_V8_COVERAGE: undefined }) },
    });
    this.process.stderr?.setEncoding('utf8').on('data', (text: string) => {
      this.#errors += text;
    });
    this.#lines = createInterface({ input: this.process.stdout as NodeJS.ReadableStream })[Symbol.asyncIterator]();
  }

  get pid(): number {
    return this.process.pid as number;
  }

  /** The next thing that it tells. */
  async told<T>(): Promise<T> {
    const { value, done } = await this.#lines.next();
    if (done !== true) return JSON.parse(value);
    throw new Error(`The other Node said nothing more:\n${this.#errors}`);
  }

  /** Kills it and waits for its end. */
  async kill(): Promise<void> {
    const { exitCode, signalCode } = this.process;
    if (exitCode !== null || signalCode !== null) return;
    this.process.kill('SIGKILL');
    await once(this.process, 'exit');
  }
}

/** What a script tells first, once it has ended by itself. */
export async function tellsOf<T>(script: string, options?: NodeOptions): Promise<T> {
  const node = new OtherNode(script, options);
  const exited = once(node.process, 'exit') as Promise<[number | null, NodeJS.Signals | null]>;
  const told = await node.told<T>();
  const [code, signal] = await exited;
  if (code !== 0) throw new Error(`The other Node ended with ${code ?? signal} after ${JSON.stringify(told)}`);
  return told;
}
