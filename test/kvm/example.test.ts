import { spawnSync } from 'node:child_process';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import ts from 'typescript';
import { requires, root } from '../helpers/index.js';

const test = requires('kvm');

test('examples/monitor.ts compiles, and its guest says hello', (t) => {
  const outDir = fileURLToPath(new URL('example/', import.meta.url));
  const program = ts.createProgram([join(root, 'examples/monitor.ts')], {
    target: ts.ScriptTarget.ES2023,
    lib: ['lib.es2023.d.ts', 'lib.esnext.disposable.d.ts'],
    module: ts.ModuleKind.NodeNext,
    types: ['node'],
    strict: true,
    skipLibCheck: true,
    rootDir: root,
    outDir,
  });
  const problems = [...ts.getPreEmitDiagnostics(program), ...program.emit().diagnostics];
  t.deepEqual(
    problems.map(({ messageText }) => messageText),
    [],
  );
  const { status, stdout, stderr } = spawnSync(process.execPath, [join(outDir, 'examples/monitor.js')], {
    encoding: 'utf8',
  });
  t.deepEqual({ status, stdout, stderr }, { status: 0, stdout: 'Hello from a guest.\n', stderr: '' });
});
