#!/usr/bin/env node
import { readFileSync } from 'node:fs';
import type { CasemateError } from '../errors.js';
import { type ImageOptions, makeImage } from '../image/index.js';
import { parseCommand } from './args.js';
import { bench } from './bench.js';
import { diagnose, renderDiagnosis } from './doctor.js';
import { HELP } from './help.js';
import { exitCodeOfError } from './report.js';
import { run } from './run.js';
import { selinux } from './selinux.js';

async function main(argv: readonly string[]): Promise<number> {
  const command = parseCommand(argv);
  switch (command.name) {
    case 'help':
      process.stdout.write(HELP[command.topic]);
      return 0;
    case 'version':
      process.stdout.write(`${version()}\n`);
      return 0;
    case 'doctor': {
      const diagnosis = await diagnose();
      process.stdout.write(command.json ? `${JSON.stringify(diagnosis, undefined, 2)}\n` : renderDiagnosis(diagnosis));
      return diagnosis.ok ? 0 : 1;
    }
    case 'bench':
      return bench(command);
    case 'image': {
      const { name, ...options } = command;
      await makeImage(options as ImageOptions);
      return 0;
    }
    case 'selinux':
      return selinux(command);
    case 'run':
      return run(command);
  }
}

function version(): string {
  return JSON.parse(readFileSync(new URL('../../package.json', import.meta.url), 'utf8')).version;
}

/** Says what went wrong and what to do, without the stack of a program that the reader did not write. */
function explain(error: unknown): void {
  const { message, code, remedy } = error as Partial<CasemateError>;
  process.stderr.write(`casemate: ${inOurWords(message ?? String(error))}${code ? ` (${code})` : ''}\n`);
  if (remedy) process.stderr.write(`  → ${inOurWords(remedy)}\n`);
  if (process.env.CASEMATE_DEBUG) console.error(error);
}

const SPELLINGS: Readonly<Record<string, string>> = {
  'options.guest': 'the guest',
  'options.args': "the guest's arguments",
  'options.kernel': '--kernel',
  'options.initrd': '--initrd',
  'options.cmdline': '--cmdline',
  'options.disks': '--disk',
  'options.memoryMib': '--memory',
  'options.limits.memoryMib': '--memory-limit',
  'options.limits.cpus': '--cpus',
  'options.limits.pids': '--pids',
  'options.limits': 'the limits',
  'options.input': '--input',
  'options.format': '--format',
  'options.sizeMib': '--size',
  'options.timeoutMs': '--timeout',
  'options.network': '--network',
  'options.network.mac': '--mac',
  'options.network.tap.addresses': '--address',
};

/** The library speaks of its options; whoever reads this gave them as arguments. */
function inOurWords(text: string): string {
  return text.replace(/options(\.\w+)+/g, (option) => SPELLINGS[option] ?? option);
}

try {
  process.exitCode = await main(process.argv.slice(2));
} catch (error) {
  explain(error);
  process.exitCode = exitCodeOfError(error);
}
