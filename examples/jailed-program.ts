// Starts an ordinary program by a plan of one's own: its own namespaces, no capabilities, no way to new ones.
import { closeSync, openSync } from 'node:fs';
import { Socket } from 'node:net';
import { text } from 'node:stream/consumers';
import { type Plan, spawn, steps } from 'casemate/jail';

const plan: Plan = {
  clone: ['pid', 'ipc', 'uts', 'net', 'mnt'],
  descriptors: ['null'],
  steps: [
    steps.socketPair('stream', 'output', 'ourOutput'), // by the launcher, before the process exists
    steps.hostname('inside'),
    steps.rlimit('nofile', 64),
    steps.session(),
    steps.descriptors({ null: 0, output: [1, 2] }), // all others close at execve
    steps.dropBounding(),
    steps.capabilities(),
    steps.noNewPrivs(),
    steps.exec('/bin/sh', ['sh', '-c', 'echo "I am process $$ on $(uname -n)"'], ['PATH=/usr/bin:/bin']),
  ],
  check: ['capabilities', 'noNewPrivs'],
};

const nothing = openSync('/dev/null', 'r+');
await using child = await spawn(plan, { descriptors: { null: nothing } });
closeSync(nothing);

const output = new Socket({ fd: child.takeDescriptor('ourOutput') });
console.log(await text(output)); // I am process 1 on inside
console.log(await child.exited); // { code: 0, signal: null }
