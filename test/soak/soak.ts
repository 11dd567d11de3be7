/** What a scenario of the soak is, and what the ones here have in common. */
import { CasemateError, type LaunchOptions, launch, type Vm } from 'casemate';
import type { Capability } from '../helpers/capabilities.js';

/** What a scenario has to go by. */
export interface Soak {
  readonly rounds: number;
  /** A whole number from 0 to below `limit`, the same ones for the same seed. */
  random(limit: number): number;
  /** So many rounds are done. */
  done(rounds: number): void;
  /** Something worth telling in the end. */
  note(text: string): void;
}

export interface Scenario {
  /** A sentence about what holds. */
  readonly title: string;
  /** How many rounds, and how many where it only has to be seen that it works. */
  readonly rounds: number;
  readonly short: number;
  readonly needs: readonly Capability[];
  /** Throws where something does not hold. What it leaves behind is looked at by who calls it. */
  run(soak: Soak): Promise<void>;
}

/** Numbers that look random and are the same for the same seed (mulberry32). */
export function randomFrom(seed: number): (limit: number) => number {
  let state = seed;
  return (limit) => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return Math.floor((((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32) * limit);
  };
}

export function holds(condition: boolean, otherwise: string): asserts condition {
  if (!condition) throw new Error(otherwise);
}

/** A VM, or the typed error why there is none. Anything else is what the soak is there to find. */
export async function launchOrError(options: LaunchOptions): Promise<Vm | CasemateError> {
  try {
    return await launch(options);
  } catch (error) {
    holds(error instanceof CasemateError, `A launch failed with ${String(error)}`);
    return error;
  }
}

export const killAll = (vms: readonly Vm[]) => Promise.all(vms.map((vm) => vm.kill()));
