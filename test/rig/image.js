// The three disks of the rig, each made once for the same content: the root, of Debian packages; kernels for guests of
// tests; and the project, which is the package as `npm pack` makes it with the compiled tests around it.
import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import {
  copyFileSync,
  cpSync,
  existsSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { basename, extname, join, resolve } from 'node:path';
import ts from 'typescript';
import {
  busybox,
  inside,
  kernels,
  keyring,
  keyringPackage,
  mirror,
  modules,
  policyTools,
  release,
  tools,
  toolsRelease,
  userSpace,
} from './packages.js';

/** Absolute, for apt takes other paths for those below its root. */
const cache = resolve('node_modules/.cache/casemate');

/** Runs a program to its good end, or throws what it said. None takes minutes, but a network may never answer. */
function run(command, args, options = {}) {
  const { status, error, stderr, stdout } = spawnSync(command, args, {
    encoding: 'utf8',
    timeout: 300_000,
    killSignal: 'SIGKILL',
    maxBuffer: 1 << 30,
    ...options,
  });
  if (error !== undefined) throw new Error(`${command}: ${error.message}`);
  if (status !== 0) throw new Error(`${command} ${args.join(' ')} ended with ${status}:\n${stderr}`);
  return stdout;
}

const runs = (command, ...args) => spawnSync(command, args, { stdio: 'ignore' }).status === 0;

/** Installs what the host lacks where it may; the reason why the rig cannot run here, or undefined. */
export function missingHere() {
  if (!runs('apt-get', '--version')) return 'the rig is made with apt-get, which is not here';
  if (!existsSync(keyring) && process.geteuid() === 0) {
    runs('apt-get', 'update', '-qq');
    runs('apt-get', 'install', '-y', '-qq', keyringPackage);
  }
  if (!existsSync(keyring)) return `apt-get install ${keyringPackage}`;
  if (process.geteuid() !== 0 && !runs('unshare', '--user', '--map-root-user', 'true'))
    return 'user namespaces cannot be created here, with which an ordinary user makes images whose files are root’s';
  return undefined;
}

/** The folder of this cache with this content, made by `make(unfinished)` unless it is there; older ones go. */
function cached(name, inputs, make) {
  const hash = createHash('sha256');
  for (const input of inputs) hash.update(input).update('\0');
  const folder = join(cache, `${name}-${hash.digest('hex').slice(0, 16)}`);
  if (existsSync(folder)) return folder;
  mkdirSync(cache, { recursive: true });
  const unfinished = mkdtempSync(join(cache, 'unfinished-'));
  try {
    make(unfinished);
    for (const old of readdirSync(cache).filter((entry) => entry.startsWith(`${name}-`)))
      rmSync(join(cache, old), { recursive: true, force: true });
    renameSync(unfinished, folder);
  } finally {
    rmSync(unfinished, { recursive: true, force: true });
  }
  return folder;
}

/**
 * Fetches packages of a suite with all that they depend on, and calls `use(archives)` with their paths. apt resolves and
 * verifies them with lists and a state of its own: the host's packages neither matter nor change, nor is root needed.
 */
function withPackages(packages, suite, work, use) {
  for (const path of ['lists/partial', 'cache/archives/partial']) mkdirSync(join(work, path), { recursive: true });
  const suites = new Set([release, suite]);
  const sources = [...suites].map((name) => `deb [signed-by=${keyring}] ${mirror} ${name} main\n`);
  writeFileSync(join(work, 'sources'), sources.join(''));
  writeFileSync(join(work, 'status'), '');
  const settings = {
    'Dir::Etc::SourceList': join(work, 'sources'),
    'Dir::Etc::SourceParts': '/dev/null',
    'Dir::State::Lists': join(work, 'lists'),
    'Dir::State::Status': join(work, 'status'),
    'Dir::Cache': join(work, 'cache'),
    'APT::Architecture': 'amd64',
    'APT::Architectures': 'amd64',
    'APT::Default-Release': suite,
    'APT::Sandbox::User': '',
    'Acquire::Languages': 'none',
    'Acquire::Retries': '3',
    // An ordinary user could not take the locks of the host's packages, and these are not touched.
    'Debug::NoLocking': 'true',
  };
  const apt = ['-qq', ...Object.entries(settings).flatMap(([name, value]) => ['-o', `${name}=${value}`])];
  run('apt-get', [...apt, 'update']);
  run('apt-get', [...apt, '-y', '--download-only', '--no-install-recommends', 'install', ...packages]);
  const archives = join(work, 'cache/archives');
  const files = readdirSync(archives).filter((name) => name.endsWith('.deb'));
  // base-files has the links /bin, /lib and /sbin, through which others unpack.
  files.sort((left, right) => right.startsWith('base-files_') - left.startsWith('base-files_'));
  use(files.map((name) => join(archives, name)));
  rmSync(work, { recursive: true });
}

/** Unpacks a package, and runs none of its scripts. */
function extract(archive, folder) {
  const unneeded = ['doc', 'man', 'locale', 'info'].map((name) => `--exclude=./usr/share/${name}`);
  const input = run('dpkg-deb', ['--fsys-tarfile', archive], { encoding: 'buffer' });
  run('tar', ['-x', '--no-same-owner', '-C', folder, ...unneeded], { input });
}

/** Unpacks packages of a suite and all that they depend on; returns their file names. */
function unpack(packages, suite, folder) {
  let names = [];
  mkdirSync(folder);
  withPackages(packages, suite, `${folder}-apt`, (archives) => {
    for (const archive of archives) extract(archive, folder);
    names = archives.map((path) => basename(path));
  });
  return names;
}

/** What decides about everything that is made of packages. */
const recipe = ['packages.js', 'image.js', 'start'].map((name) => readFileSync(new URL(name, import.meta.url)));

/** The command that runs one of the unpacked tools, with the libraries that were unpacked with it. */
export function tool(path) {
  const folder = join(
    cached('rig-tools', recipe, (unfinished) => unpack(tools, toolsRelease, join(unfinished, 'tree'))),
    'tree',
  );
  const loader = join(folder, 'usr/lib64/ld-linux-x86-64.so.2');
  const libraries = join(folder, 'usr/lib/x86_64-linux-gnu');
  const command = [loader, '--library-path', libraries, '--argv0', basename(path), join(folder, path)];
  return { folder, command };
}

/** Whoever makes a tree, the files in it are root's: an ordinary user is root in a user namespace. */
const isRoot = process.geteuid() === 0;
const asRoot = isRoot ? [] : ['unshare', '--user', '--map-root-user'];

/** The command that runs a program in a tree of packages as its root. */
export const within = (tree) => (isRoot ? ['chroot', tree] : [...asRoot, '--root', tree]);

/** What the script of the policy's package does: its modules become a store, by the tools that came with it. */
function makePolicyStore(tree) {
  writeFileSync(join(tree, 'etc/selinux/config'), 'SELINUX=enforcing\nSELINUXTYPE=default\n');
  const folder = '/usr/share/selinux/default';
  const names = readFileSync(join(tree, folder, '.modules'), 'utf8')
    .trim()
    .split(/\s+/);
  const modules = names.map((name) => `${folder}/${name}.pp.bz2`);
  const [command, ...args] = [...within(tree), '/usr/sbin/semodule', '--noreload', '--store', 'default'];
  run(command, [...args, '--priority', '100', '--install', ...modules]);
}

/** A tree with Debian's policy in its store, and what builds and analyses modules upon it. */
const policyTree = () =>
  join(
    cached('rig-policy', recipe, (folder) => {
      const tree = join(folder, 'tree');
      unpack(policyTools, release, tree);
      makePolicyStore(tree);
    }),
    'tree',
  );

const policyFolder = '/etc/selinux/default';

/**
 * Our module, built upon Debian's policy: `tree` has it in its store, `policy` is the path of the binary policy in there,
 * and `archive` is a tar of what a machine loads and labels its files by.
 */
export function policyWithModule() {
  const tree = policyTree();
  const module = readFileSync('policy/casemate.cil');
  const folder = cached('rig-module', [...recipe, module], (unfinished) => {
    writeFileSync(join(tree, 'tmp/casemate.cil'), module);
    const [command, ...args] = [...within(tree), '/usr/sbin/semodule', '--noreload', '--store', 'default'];
    run(command, [...args, '--install', '/tmp/casemate.cil']);
    const archive = join(unfinished, 'policy.tar');
    run('tar', ['-cf', archive, '-C', join(tree, policyFolder), 'policy', 'contexts/files']);
  });
  const [policy] = readdirSync(join(tree, policyFolder, 'policy'));
  return { tree, policy: `${policyFolder}/policy/${policy}`, archive: join(folder, 'policy.tar') };
}

/** These tools as a disk, for the bench: what the machine is run with is what its guests are compared with. */
export function qemuImage() {
  const { folder } = tool('usr/bin/qemu-system-x86_64');
  return cached('rig-qemu', recipe, (unfinished) => {
    const tree = join(unfinished, 'tree');
    cpSync(folder, tree, { recursive: true, verbatimSymlinks: true });
    filesystem(tree, join(unfinished, 'disk'), 256);
  });
}

const runTool = (path, args, through = []) => {
  const { folder, command } = tool(path);
  const [first, ...rest] = [...through, ...command, ...args];
  return run(first, rest, { env: { ...process.env, MKE2FS_CONFIG: join(folder, 'etc/mke2fs.conf') } });
};

/** An ext4 of a folder, which goes. It has no journal: what a rig writes to its disks is thrown away. */
function filesystem(folder, image, mib) {
  runTool(
    'usr/sbin/mke2fs',
    ['-q', '-t', 'ext4', '-O', '^has_journal', '-m', '0', '-d', folder, image, `${mib}M`],
    asRoot,
  );
  rmSync(folder, { recursive: true });
}

/** The kernel and the root disk. */
export function rootImage() {
  return cached('rig-root', recipe, (folder) => {
    const tree = join(folder, 'tree');
    const packages = unpack(inside, release, tree);
    const [version = ''] = readdirSync(join(tree, 'usr/lib/modules'));
    copyFileSync(join(tree, `boot/vmlinuz-${version}`), join(folder, 'vmlinuz'));
    rmSync(join(tree, 'boot'), { recursive: true });
    runTool('usr/sbin/depmod', ['-b', tree, version]);
    // The rest is what scripts of packages would have done.
    symlinkSync('bash', join(tree, 'usr/bin/sh'));
    const users = ['root:x:0:0::/root', 'user:x:1000:1000::/home/user', 'nobody:x:65534:65534::/'];
    writeFileSync(join(tree, 'etc/passwd'), users.map((user) => `${user}:/bin/bash\n`).join(''));
    writeFileSync(join(tree, 'etc/group'), 'root:x:0:\nkvm:x:104:user\nuser:x:1000:\nnogroup:x:65534:\n');
    mkdirSync(join(tree, 'casemate'));
    mkdirSync(join(tree, 'kernels'));
    makePolicyStore(tree);
    copyFileSync(new URL('start', import.meta.url), join(tree, 'start'));
    filesystem(tree, join(folder, 'disk'), 512);
    writeFileSync(join(folder, 'packages.txt'), `${packages.sort().join('\n')}\n`);
  });
}

/** The program in a bzImage, as Debian compresses it; Documentation/arch/x86/boot.rst. */
function unpackKernel(image, output) {
  const bytes = readFileSync(image);
  const start = (bytes[0x1f1] + 1) * 512 + bytes.readUInt32LE(0x248);
  // Its last four bytes are its size when unpacked.
  const payload = bytes.subarray(start, start + bytes.readUInt32LE(0x24c) - 4);
  if (payload.readUInt32LE(0) !== 0xfd2fb528) throw new Error(`${image} is not compressed with zstd any more`);
  writeFileSync(`${output}.zst`, payload);
  runTool('usr/bin/zstd', ['-d', '-q', '--rm', '-o', output, `${output}.zst`]);
}

/** A kernel of the folder `tree` in all its forms, with the few of its modules that guests of tests load. */
function layOutKernel(tree, version, folder) {
  const from = join(tree, 'usr/lib/modules', version);
  mkdirSync(join(folder, 'modules'), { recursive: true });
  const [image] = [join(tree, `boot/vmlinuz-${version}`), join(from, 'vmlinuz')].filter(existsSync);
  copyFileSync(image, join(folder, 'vmlinuz'));
  unpackKernel(image, join(folder, 'vmlinux'));
  runTool('usr/sbin/depmod', ['-b', tree, version]);
  const files = Object.fromEntries(
    modules.map((name) => {
      const lines = runTool('usr/sbin/modprobe', ['-d', tree, '-S', version, '--show-depends', name]);
      // "insmod <path>" in the order in which to load them, or "builtin <name>".
      const paths = [...new Set([...lines.matchAll(/^insmod (\S+)/gm)].map(([, path]) => path))];
      for (const path of paths) copyFileSync(path, join(folder, 'modules', basename(path)));
      return [name, paths.map((path) => basename(path, '.xz'))];
    }),
  );
  const packed = readdirSync(join(folder, 'modules')).map((name) => join(folder, 'modules', name));
  runTool('usr/bin/xz', ['-d', ...packed]);
  writeFileSync(join(folder, 'kernel.json'), JSON.stringify({ version, modules: files }, undefined, 2));
}

/** The kernels that tests boot; test/helpers/linux.ts says how they lie there. */
export function kernelImage() {
  return cached('rig-kernels', recipe, (folder) => {
    const disk = join(folder, 'tree');
    mkdirSync(disk);
    for (const { name, image, suite } of kernels) {
      const tree = join(folder, 'unpacked');
      mkdirSync(join(tree, 'usr/lib'), { recursive: true });
      symlinkSync('usr/lib', join(tree, 'lib'));
      withPackages([image, busybox], suite, join(folder, 'apt'), (archives) => {
        // A kernel's own packages have its version in their names: linux-image-6.12, linux-modules-7.3.
        const wanted = archives.filter((path) => /^(linux-[a-z]+-\d|busybox)/.test(basename(path)));
        for (const archive of wanted) extract(archive, tree);
      });
      const [version = ''] = readdirSync(join(tree, 'usr/lib/modules'));
      layOutKernel(tree, version, join(disk, name));
      copyFileSync(join(tree, 'usr/bin/busybox'), join(disk, 'busybox'));
      rmSync(tree, { recursive: true });
    }
    userSpaceImage(join(folder, 'unpacked'), join(disk, 'systemd.ext4'));
    filesystem(disk, join(folder, 'disk'), 768);
  });
}

/** A root of a guest, with systemd as its init. */
function userSpaceImage(tree, image) {
  unpack(userSpace, release, tree);
  symlinkSync('bash', join(tree, 'usr/bin/sh'));
  writeFileSync(join(tree, 'etc/passwd'), 'root:x:0:0::/root:/bin/bash\n');
  writeFileSync(join(tree, 'etc/group'), 'root:x:0:\n');
  // Of what starts with a machine it has what every one has; an empty one is made at each start.
  writeFileSync(join(tree, 'etc/machine-id'), '');
  filesystem(tree, image, 192);
}

/** The folders of npm packages that a package of ours needs to run, as package-lock.json has them. */
function closure(...names) {
  const { packages } = JSON.parse(readFileSync('package-lock.json', 'utf8'));
  const seen = new Set();
  const visit = (from, name) => {
    // As Node looks for it: in the package's own node_modules, then in those above.
    for (let at = from; ; at = at.slice(0, Math.max(0, at.lastIndexOf('/node_modules/')))) {
      const path = `${at}${at === '' ? '' : '/'}node_modules/${name}`;
      if (packages[path] !== undefined && !seen.has(path)) {
        seen.add(path);
        for (const dependency of Object.keys(packages[path].dependencies ?? {})) visit(path, dependency);
      }
      if (packages[path] !== undefined || at === '') return;
    }
  };
  for (const name of names) visit('', name);
  return [...seen];
}

/** Every file below some folders, or those files themselves. */
const filesOf = (paths) =>
  paths.flatMap((path) =>
    lstatSync(path).isDirectory() ? filesOf(readdirSync(path).map((name) => join(path, name))) : [path],
  );

const programs = 'test/programs';
const compilerOptions = { target: ts.ScriptTarget.ES2023, module: ts.ModuleKind.ESNext };

/** The project's disk: /casemate in the rig. */
export function projectImage() {
  const guests = readdirSync('build/Release').filter((name) => /^casemate-guest-.*\.(elf|bin)$/.test(name));
  const binaries = ['casemate-unit', ...guests].map((name) => `build/Release/${name}`);
  const around = ['ava.config.js', 'build/test', 'build/bench', 'native/test/corpus/unpack', ...binaries];
  const packed = ['package.json', 'package-lock.json', 'README.md', 'lib', 'src', 'policy', 'native/guest'];
  const built = ['casemate.node', 'casemate-vmm', 'unpack/casemate-unpack'].map((name) => `build/Release/${name}`);
  const inputs = [...packed, ...built, ...around, programs, 'examples', 'test/rig'];
  const contents = filesOf(inputs)
    .sort()
    .flatMap((path) => [path, readFileSync(path)]);
  return cached('rig-project', contents, (folder) => {
    const tree = join(folder, 'tree');
    mkdirSync(tree);
    run(process.execPath, ['scripts/prebuild.js']);
    const pack = run('npm', ['pack', '--ignore-scripts', '--silent', '--pack-destination', folder]).trim();
    // A checkout prefers prebuilt files to its own, and these would soon be old.
    rmSync('prebuilds', { recursive: true });
    run('tar', ['-xzf', join(folder, pack), '-C', tree, '--strip-components=1']);
    rmSync(join(folder, pack));

    for (const path of [...around, ...closure('ava')]) cpSync(path, join(tree, path), { recursive: true });
    // There are no compilers in the rig. This one test is of the compiler; what it compiles comes compiled.
    rmSync(join(tree, 'build/test/kvm/example.test.js'));
    mkdirSync(join(tree, 'examples'));
    for (const name of readdirSync('examples').filter((name) => name.endsWith('.ts'))) {
      const { outputText } = ts.transpileModule(readFileSync(join('examples', name), 'utf8'), { compilerOptions });
      writeFileSync(join(tree, 'examples', `${basename(name, '.ts')}.js`), outputText);
    }
    mkdirSync(join(tree, 'test/rig'), { recursive: true });
    copyFileSync('test/rig/inside', join(tree, 'test/rig/inside'));
    mkdirSync(join(tree, programs));
    // Of those in C++ all but one print formats of the build, which are looked at where it is built.
    for (const source of readdirSync(programs).filter((name) => name.endsWith('.c') || name === 'escape.cpp')) {
      const output = join(tree, programs, basename(source, extname(source)));
      const [compiler, ...flags] = source.endsWith('.c') ? ['gcc'] : ['g++', '-std=c++20'];
      run(compiler, [...flags, join(programs, source), '-o', output, '-static', '-O1', '-I', 'native']);
    }
    filesystem(tree, join(folder, 'disk'), 128);
  });
}
