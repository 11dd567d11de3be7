// A checkout in small, in build/trapping: all that tests of VMs need, but with a monitor that UBSan has been through,
// which ends by SIGILL where it finds something. Tests run in there as they do here, and beside those.
import { copyFileSync, cpSync, mkdirSync, readdirSync, rmSync, symlinkSync } from 'node:fs';
import { resolve } from 'node:path';

const folder = 'build/trapping';

/** Makes it, of what is built, and says where it is. */
export function trappingCheckout() {
  rmSync(folder, { recursive: true, force: true });
  mkdirSync(`${folder}/build/Release`, { recursive: true });
  // Node follows links: what looks for its surroundings is copied.
  for (const path of ['lib', 'build/test', 'package.json', 'ava.config.js']) {
    cpSync(path, `${folder}/${path}`, { recursive: true });
  }
  const link = (path) => symlinkSync(resolve(path), `${folder}/${path}`);
  for (const path of ['node_modules', 'native', 'test', 'examples', 'policy', 'src']) link(path);
  for (const name of readdirSync('build/Release')) if (name !== 'casemate-vmm') link(`build/Release/${name}`);
  copyFileSync('build/sanitized/casemate-vmm-trapping', `${folder}/build/Release/casemate-vmm`);
  return folder;
}
