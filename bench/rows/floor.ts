/** The floor: the same kernel work with nothing else, in C (bench/floor/README.md). */
import { accessSync } from 'node:fs';
import { StepTable } from '#lib/cli/steps.js';
import type { Measured } from '../results.js';
import { momentsOfFloor } from '../steps.js';
import { built, needsRoot, output, type Subject, valuesOfLines } from '../subject.js';

function missing(): string | undefined {
  try {
    accessSync(built('floor'));
    return needsRoot();
  } catch {
    return 'the floor is not built (gcc and make)';
  }
}

async function runFloor(...args: string[]): Promise<Measured> {
  const lines = await output(built('floor'), args);
  const values = valuesOfLines(lines, ['t1', 't2', 'exec']);
  const table = new StepTable();
  for (const line of lines.trim().split('\n')) table.add(momentsOfFloor(JSON.parse(line).steps));
  return { values, steps: table.steps };
}

export const floorSubjects: readonly Subject[] = [
  {
    name: 'floor',
    title: 'floor: the same jail and VM, in C',
    family: 'floor',
    missing,
    trial: ({ launches }) => runFloor('--trials', String(launches)),
  },
  {
    name: 'floor-unjailed',
    title: 'floor without a jail: vfork, exec, VM',
    family: 'floor',
    missing,
    trial: ({ launches }) => runFloor('--no-jail', '--trials', String(launches)),
  },
  {
    name: 'floor-cold',
    title: 'floor, nothing prepared',
    family: 'floor',
    missing,
    trial: () => runFloor('--cold', '--trials', '1'),
  },
  {
    name: 'floor-memory-1024',
    title: 'floor, guest memory of 1024 MiB',
    family: 'floor',
    missing,
    trial: ({ launches }) => runFloor('--memory', '1024', '--trials', String(launches)),
  },
  {
    name: 'nothing',
    title: 'a do-nothing program in the same jail',
    family: 'floor',
    missing,
    trial: async ({ launches }) => {
      const { values } = await runFloor('--exec-only', built('nothing-stamped'), '--trials', String(launches));
      return { values: { exec: values.exec ?? [] } };
    },
  },
];
