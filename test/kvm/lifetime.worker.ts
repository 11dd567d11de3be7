/** A worker for lifetime.test.ts: says when its vCPU runs, and never stops it. */
import { parentPort } from 'node:worker_threads';
import { machine, realModeVcpu } from './guests.js';

void realModeVcpu(machine([0xeb, 0xfe])).run(); // jmp $
parentPort?.postMessage('running');
