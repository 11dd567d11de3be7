import type { Subject } from '../subject.js';
import { floorSubjects } from './floor.js';
import { httpSubjects } from './http.js';
import { launchSubjects } from './launches.js';
import { peerSubjects } from './peers.js';

/** Everything that can be measured, in the order in which it is shown. What is compared most stands close together. */
export const allSubjects: readonly Subject[] = [...floorSubjects, ...launchSubjects, ...peerSubjects, ...httpSubjects];
