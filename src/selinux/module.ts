import { spawnSync } from 'node:child_process';
import {
  closeSync,
  existsSync,
  mkdtempSync,
  openSync,
  readFileSync,
  realpathSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { CasemateError, isSystemError } from '../errors.js';
import { builtFile, native } from '../native.js';
import { deniedOf } from './access.js';
import { restoreLabels } from './files.js';
import { getContext, mode, type SelinuxMode, selinuxError } from './host.js';
import { giveBack, isSelinuxHere, labelFor, types } from './label.js';
import { journal, leasesPath, makeState, stateFolder } from './leases.js';
import { parseSelinux } from './request.js';

const moduleName = 'casemate';
const modulePath = fileURLToPath(new URL('../../policy/casemate.cil', import.meta.url));
const stateType = 'casemate_state_t';

/** Files of this installation that have labels of their own. */
const executables = ['casemate-vmm', 'unpack/casemate-unpack'];
const contents = ['casemate-guest-hello.elf'];

const systemFile = (type: string): string => `system_u:object_r:${type}:s0`;

function installed(): { path: string; type: string }[] {
  const labelled = (names: string[], type: string) =>
    names.flatMap((name) => {
      try {
        return [{ path: realpathSync(builtFile(name)), type }];
      } catch (error) {
        if (error instanceof CasemateError) return []; // built without it
        throw error;
      }
    });
  return [...labelled(executables, types.executable), ...labelled(contents, types.content)];
}

/** A path as a regular expression that matches nothing else. */
function exactly(path: string): string {
  if (/["\\^\n]/.test(path)) {
    throw selinuxError(`No policy can name the path ${path}`, {
      step: 'install',
      remedy: 'Install casemate in a folder whose path has no quotes, carets and backslashes.',
    });
  }
  return path.replace(/[.+*?()$|{}[\]]/g, '[$&]');
}

/** The module with the paths of this installation. */
export function moduleSource(): string {
  const paths = installed().map(
    ({ path, type }) => `(filecon "${exactly(path)}" file (system_u object_r ${type} ((s0) (s0))))\n`,
  );
  return `${readFileSync(modulePath, 'utf8')}\n; This installation.\n${paths.join('')}`;
}

/**
 * By a shell, which has a pipe for what it says: these programs have domains of their own, that may use a pipe of who starts
 * them, but not the sockets that Node gives a child, and without a word there would be no reason to report.
 */
function run(command: string, ...args: string[]): void {
  const script = 'said=$("$@" 2>&1); code=$?; printf %s "$said"; exit $code';
  const { status, stdout } = spawnSync('/bin/sh', ['-c', script, 'sh', command, ...args], { encoding: 'utf8' });
  if (status === 0) return;
  throw selinuxError(`${command} ${args.join(' ')}: ${stdout.trim()}`, {
    step: command,
    remedy:
      status === 127 // as sh says that there is no such program
        ? 'Install it: apt-get install policycoreutils, or dnf install policycoreutils.'
        : 'Run it as root, in a domain that may change the policy.',
  });
}

function label(path: string, type: string): void {
  const fd = openSync(path, 'r');
  try {
    native.selinuxSetFileContext(fd, systemFile(type));
  } finally {
    closeSync(fd);
  }
}

/**
 * Builds the module upon the policy of this host and loads it, labels the files of this installation, and makes what VMs of
 * all users share. May be repeated.
 *
 * @throws CasemateError `ERR_CASEMATE_SELINUX`.
 */
export function installModule(): void {
  const folder = mkdtempSync(join(tmpdir(), 'casemate-policy-'));
  try {
    const source = join(folder, `${moduleName}.cil`);
    writeFileSync(source, moduleSource());
    run('semodule', '--install', source);
  } finally {
    rmSync(folder, { recursive: true });
  }
  makeState();
  try {
    for (const { path, type } of installed()) label(path, type);
    for (const path of [stateFolder, leasesPath, journal]) label(path, stateType);
    if (existsSync('/run/casemate')) run('restorecon', '-R', '/run/casemate');
  } catch (cause) {
    if (!isSystemError(cause)) throw cause;
    throw selinuxError(`The files of casemate cannot be labelled: ${cause.message}`, {
      step: 'labels',
      remedy: 'Install casemate on a filesystem that stores labels, and run this as root.',
      cause,
    });
  }
}

/** Takes the module out of the policy, and gives files the labels that they have without it. */
export function removeModule(): void {
  restoreLabels();
  const paths = installed().map(({ path }) => path);
  run('semodule', '--remove', moduleName);
  run('restorecon', '-F', ...paths);
  run('restorecon', '-FR', stateFolder);
}

/** One thing that {@link checkModule} has looked at. */
export interface SelinuxFinding {
  readonly name: string;
  readonly ok: boolean;
  readonly detail: string;
  /** What to do where it is not as it should be. */
  readonly remedy: string | undefined;
}

/** What can be said of SELinux on this host. */
export interface SelinuxStatus {
  readonly mode: SelinuxMode;
  /** That this process runs in; undefined where there is none. */
  readonly context: string | undefined;
  /** What a VM launched now with `selinux: 'auto'` would get; undefined where that is no label. */
  readonly label: string | undefined;
  /** Why it is none. */
  readonly unlabelled: string | undefined;
}

/** Asks what a launch would ask. */
export function selinuxStatus(): SelinuxStatus {
  const found = labelFor(parseSelinux('auto'));
  if (!('context' in found)) {
    const context = isSelinuxHere() ? getContext() : undefined;
    return { mode: mode(), context, label: undefined, unlabelled: found.unlabelled };
  }
  giveBack(found);
  return { mode: mode(), context: getContext(), label: found.context, unlabelled: undefined };
}

/** What a monitor must not reach, whatever else is in the policy: asked of the one that is loaded. */
const forbidden: readonly (readonly [type: string, tclass: string, permission: string])[] = [
  ['shadow_t', 'file', 'read'],
  ['user_home_t', 'file', 'read'],
  ['etc_t', 'file', 'write'],
  ['security_t', 'security', 'load_policy'],
];

/** Whether everything is as {@link installModule} leaves it, and as the isolation of VMs needs it. */
export function checkModule(): SelinuxFinding[] {
  const install = 'Run `casemate selinux install` as root.';
  const finding = (name: string, ok: boolean, detail: string, remedy = install): SelinuxFinding => ({
    name,
    ok,
    detail,
    remedy: ok ? undefined : remedy,
  });
  const { mode: found, label: example, unlabelled } = selinuxStatus();
  const list = [finding('mode', found === 'enforcing', found, 'Run `setenforce 1`, and set SELINUX=enforcing.')];
  if (found === 'disabled') return list;
  list.push(
    finding('label', example !== undefined, example ?? unlabelled ?? '', `${install} ${unlabelled ?? ''}`.trim()),
  );
  const places = [...installed(), { path: leasesPath, type: stateType }, { path: journal, type: stateType }];
  for (const { path, type } of places) {
    const has = contextAt(path);
    list.push(finding(path, has?.split(':')[2] === type, has ?? 'no label'));
  }
  if (example === undefined) return list;
  for (const [type, tclass, permission] of forbidden) {
    const isDenied = deniedOf(example, systemFile(type), tclass, [permission]).length > 0;
    const remedy = 'Another module grants this: look for it with sesearch, and take it out.';
    list.push(
      finding(`${type} ${tclass} ${permission}`, isDenied, isDenied ? 'denied' : 'granted to monitors', remedy),
    );
  }
  const own = example.replace(/:s0:.*/, ':s0:c2,c3');
  const other = `system_u:object_r:${types.image}:s0:c0,c1`;
  const apart = deniedOf(own, other, 'file', ['read', 'write']);
  list.push(finding('categories', apart.length === 2, apart.length === 2 ? 'keep VMs apart' : 'do not keep VMs apart'));
  return list;
}

function contextAt(path: string): string | undefined {
  try {
    return native.selinuxFileContext(path);
  } catch (error) {
    if (isSystemError(error)) return undefined;
    throw error;
  }
}
