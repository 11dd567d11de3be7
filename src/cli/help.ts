import type { Topic } from './args.js';

/** The help texts, by topic. */
export const HELP: Readonly<Record<Topic, string>> = {
  casemate: `casemate runs programs in virtual machines of their own, each behind KVM and in a jail.

Usage: casemate <command>

Commands:
  run [guest] [args...]  launch a VM and run a guest program, or a Linux and a command in it
  image SOURCE IMAGE     make an initrd or a root disk for Linux guests
  bench                  measure how long launches take here
  doctor                 check whether this machine can, and what to do if not
  selinux [action]       casemate's SELinux policy: status, install, check, denials and more
  help [command]         more about a command

Options:
  -h, --help     this text
  -v, --version  the version of casemate

Start here:
  casemate doctor        is this machine ready?
  casemate run           run the guest that comes with casemate
`,

  run: `Launches a VM and runs a guest program in it.

Usage: casemate run [options] [guest] [args...]
       casemate run --kernel FILE [options] [--] [command] [args...]

The guest is a bare-metal program: a 64-bit ELF executable linked statically, or a flat binary.
Without one, the guest that comes with casemate says hello. Options of casemate stand before the guest;
everything behind it is the guest's own. What you type or pipe in is the guest's input, what it prints is
printed, and its exit code is the exit code of this command. Ctrl-C ends the VM.

With --kernel the guest is a Linux: its serial console is what is typed and printed, and it ends by powering off.
With a command behind the options casemate's agent in that guest runs it, as ssh would: its input, its output, its
terminal where this is one, signals and its exit code. When it has ended the guest is powered off.

Options:
  -k, --kernel FILE  a Linux kernel (bzImage or vmlinux) instead of a guest; "auto" is the one that this host runs
      --initrd FILE  its initial RAM file system; several are unpacked one over the other
      --disk PATH[,ro]
                     a disk of it, a file or a block device; the first is /dev/vda, and so on
      --cmdline TEXT its whole command line (default: console=ttyS0 quiet panic=-1 pci=off)
  -u, --user USER    who the command runs as: a name in the guest, or uid:gid (default: root)
      --modules DIR  modules of the kernel, /lib/modules/<version>: what of them the agent needs is brought along
  -m, --memory MIB   memory of the VM in MiB, an even number (default: 16, with --kernel 256)
      --vcpus N      vCPUs of a Linux (default: 1)
  -i, --input FILE   a file that the guest finds in its memory
      --memory-limit MIB, --cpus NUMBER, --pids NUMBER
                     what the VM may take of the host: memory, processors (0.5 is half of one), tasks
  -t, --timeout MS   end the VM after so many milliseconds
      --network tap         a tap in the VM's own network namespace
      --network tap=NAME    a tap that exists, made for this user by \`ip tuntap add\`
      --network stream=PATH the socket of passt
      --address IP/BITS     of --network tap: the namespace's end of it; may be repeated
      --mac MAC             of the guest's network device (default: a random one)
      --cpl 0|3      privilege level at which the guest runs (default: 3, native on every kind of KVM)
      --json         print one JSON object instead of the guest's output: how it ended, what it printed
      --timeline     show where the time of the launch went (on stderr)
      --evidence     show what the kernel says about the jail, layer by layer (on stderr)
  -h, --help         this text

Exit codes:
  0 to 255           the guest's own; 0 where a Linux powered off, 1 where it asked for a restart
  124                the time given with --timeout passed
  125                casemate itself failed; the message says why and what to do
  126, 127           the guest cannot run the command; it has none of that name
  128 + N            signal N ended the command in a Linux guest
  130, 143, 129      ended by Ctrl-C, SIGTERM or SIGHUP
  134                the guest crashed: a fault, a triple fault, a kernel's panic, a call that its machine does not
                     have
  137                the VM was killed from outside, or needed more memory than --memory-limit
  141                whoever read the output went away

Set CASEMATE_DEBUG=1 to see whole errors.

Examples:
  casemate run --timeline --evidence
  casemate run hello.elf world
  echo shout this | casemate run --timeout 1000 upper.elf
  casemate run --kernel auto --initrd initrd.img --memory 512
  casemate run --kernel auto --initrd initrd.img -- sh -c 'uname -a'
`,

  image: `Makes an initrd or a root disk for Linux guests, without root and without mounting anything.

Usage: casemate image [options] SOURCE IMAGE

SOURCE is a directory, or a tar archive, which may be compressed by gzip. The same source makes the same image.

Options:
  -f, --format FORMAT  cpio, an initrd (the default); ext4, a disk, by e2fsprogs; erofs, a disk that is only read,
                       by erofs-utils of 1.7 or newer
  -s, --size MIB       size of an ext4 disk (default: what is in it, a quarter more, and 32 MiB)
      --keep-owners    files belong to whom they belong in SOURCE (default: all are root's)
  -h, --help           this text

Examples:
  casemate image rootfs/ initrd.img
  casemate image --format ext4 --size 1024 rootfs.tar.gz root.img
`,

  selinux: `Sees to casemate's SELinux policy, under which each VM has a label that no other one has.

Usage: casemate selinux [action] [--json]

Actions:
  status   the mode of this host, and the label that a VM would get (the default)
  install  build the policy module upon the policy of this host, load it, and label casemate's files (root)
  check    look whether all that is as it should be, and what monitors must not reach is out of their reach
  remove   take the module out of the policy again (root)
  restore  give files back the labels that VMs left on them whose Node died
  denials  follow what is denied to VMs, in words, with the rule that would grant it

Options:
      --json  print what is found as JSON
  -h, --help  this text
`,

  bench: `Measures how long launches take on this machine, and which steps hold the time.

Usage: casemate bench [options]

The built-in guest is launched in the strict jail, one VM at a time, and killed again. A launch begins with the
call of launch(), t0; at t1 the guest has run and made its first call to its machine; at t2 the promise of
launch() resolves. The first launch of a process, which finds nothing prepared, is shown by itself.

Options:
  -n, --launches N   how many launches to measure (default: 100)
  -m, --memory MIB   memory of the VMs in MiB, an even number (default: 16)
      --json         print the result as JSON, every time in nanoseconds
  -h, --help         this text

Exit codes:
  0    measured
  125  a launch failed; the message says why and what to do

Other programs on the machine make launches slower: the least time says what a launch costs, p99 what is to be
reckoned with.
`,

  doctor: `Checks everything that casemate needs of this machine, and says what to do about what is missing.

Usage: casemate doctor [--json]

Nothing is changed. Where nothing speaks against it, the built-in guest is launched once as the last proof.

Options:
      --json  print the result as JSON: { "ok": true, "checks": [{ "name", "status", "found", ... }] }
  -h, --help  this text

Exit codes:
  0  a VM in the strict jail works here
  1  it does not; what stands in the way is marked ✗
`,
};
