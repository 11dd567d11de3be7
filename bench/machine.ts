import { spawnSync } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import { availableParallelism, cpus, loadavg, totalmem } from 'node:os';
import { readHost } from '#lib/host.js';
import type { Machine } from './results.js';
import { root } from './subject.js';

function git(...args: string[]): string {
  return spawnSync('git', args, { cwd: root, encoding: 'utf8' }).stdout?.trim() ?? '';
}

/** What the kernel does about flaws of this processor, as far as it costs time. */
function mitigations(): string {
  const folder = '/sys/devices/system/cpu/vulnerabilities';
  try {
    const active = readdirSync(folder)
      .map((name) => [name, /Mitigation: ([^;]+)/.exec(readFileSync(`${folder}/${name}`, 'utf8'))?.[1]?.trim()])
      .filter(([, what]) => what !== undefined);
    return active.length === 0 ? 'none active' : active.map(([name, what]) => `${name}: ${what}`).join(' · ');
  } catch {
    return 'unknown';
  }
}

function readOr(path: string, otherwise: string): string {
  try {
    return readFileSync(path, 'utf8').trim();
  } catch {
    return otherwise;
  }
}

/** The header of a run: all that its numbers depend on besides the code. */
export function describeMachine(): Machine {
  const host = readHost();
  const { modules, hypervisor } = host.virtualization;
  const commit = git('rev-parse', '--short', 'HEAD');
  return {
    date: new Date().toISOString(),
    commit: commit === '' ? 'unknown' : `${commit}${git('status', '--porcelain') === '' ? '' : ', with changes'}`,
    processor: `${availableParallelism()} × ${cpus()[0]?.model.trim() ?? 'unknown'}${hypervisor ? ', under a hypervisor' : ''}`,
    governor: readOr('/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor', 'none'),
    memory: `${Math.round(totalmem() / 2 ** 20)} MiB`,
    kernel: host.kernel,
    kvm: modules.length === 0 ? 'no module to be seen' : modules.join(', '),
    node: process.version,
    caller: host.caller.admin ? 'root' : `user ${host.caller.uid}`,
    selinux: host.selinux,
    'huge pages': host.transparentHugePages ?? 'none',
    mitigations: mitigations(),
    load: loadavg()
      .map((value) => value.toFixed(2))
      .join(' '),
  };
}
