// node scripts/fuzz.js [--seconds=N] [name...]
//
// Fuzzers of native/sources.json, each with what native/test/corpus has for it: every input of that once, then a few
// thousand others, the same each time. With --seconds each goes on for so long instead, with others each time, and adds
// what is new to it to build/fuzz/<name>, where the next such run begins.
import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { built } from './cmake.js';
import { conclude, Tally } from './suite.js';

const { values, positionals } = parseArgs({ allowPositionals: true, options: { seconds: { type: 'string' } } });
const isShort = values.seconds === undefined;
const all = Object.keys(JSON.parse(readFileSync('native/sources.json', 'utf8')).fuzz);
const unknown = positionals.find((name) => !all.includes(name));
if (unknown !== undefined) throw new Error(`There is no fuzzer ${unknown}; there are ${all.join(', ')}`);

/** Runs one; gives its last words where it did not come to a good end. */
function fuzz(name) {
  const corpus = join('native/test/corpus', name);
  if (!existsSync(corpus) || readdirSync(corpus).length === 0) return `${corpus} has nothing for it`;
  const artifacts = `build/fuzz/${name}-`;
  // What is new goes to the first folder. Of the short form nothing stays, so that the next one does the same.
  const found = join('build/fuzz', isShort ? 'found' : name);
  if (isShort) rmSync(found, { recursive: true, force: true });
  mkdirSync(found, { recursive: true });
  const length = isShort ? ['-seed=1', '-runs=5000'] : [`-max_total_time=${values.seconds}`];
  const args = [...length, `-artifact_prefix=${artifacts}`, '-timeout=60', found, corpus];
  const program = `build/fuzz/casemate-fuzz-${name}`;
  const { status, stderr } = spawnSync(program, args, { encoding: 'utf8', maxBuffer: 1 << 30 });
  return status === 0 ? undefined : `${stderr.slice(-8000)}\nThe input is ${artifacts}*`;
}

const tally = new Tally();
if (built('fuzz', 'casemate-fuzzers', '-C', '--CDCASEMATE_FUZZ=ON', '--CDCASEMATE_SANITIZE=address;undefined')) {
  for (const name of positionals.length > 0 ? positionals : all) {
    const why = fuzz(name);
    if (why !== undefined) console.log(why);
    tally.say(`${why === undefined ? 'ok' : 'not ok'} - nothing is found by the fuzzer ${name}`);
  }
} else {
  tally.end('they do not build');
}
conclude({ fuzz: tally });
