// The policy module, built upon Debian's policy as `casemate selinux install` builds it, and asked what it grants.
import { spawnSync } from 'node:child_process';
import { copyFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { conclude, runTap, Tally } from '../../scripts/suite.js';
import { missingHere, policyWithModule, within } from '../rig/image.js';

process.chdir(fileURLToPath(new URL('../..', import.meta.url)));

async function test() {
  const missing = missingHere();
  if (missing !== undefined) {
    const skipped = new Tally();
    skipped.say(`ok 1 - the policy # SKIP ${missing}`);
    return skipped;
  }
  const { tree, policy } = policyWithModule();
  const [command, ...args] = within(tree);
  copyFileSync('test/policy/analysis.py', join(tree, 'tmp/analysis.py'));
  const analysis = [...args, 'python3', '/tmp/analysis.py', policy];
  const tally = await runTap(command, analysis);
  // Of libvirt's domain much of it does not hold: so the analysis is known to be able to fail.
  const { stdout } = spawnSync(command, [...analysis, 'svirt_t'], { encoding: 'utf8' });
  const failed = stdout.match(/^not ok/gm)?.length ?? 0;
  tally.say(`${failed > 10 ? 'ok' : 'not ok'} 1 - of svirt_t much of this does not hold: ${failed} fail`);
  return tally;
}

conclude({ policy: await test() });
