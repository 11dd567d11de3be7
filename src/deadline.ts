interface Deadline {
  /** By {@link nowMs}. */
  readonly at: number;
  readonly missed: () => void;
}

/** Monotonic. Not performance.now(), which is 8 µs of a launch where that is 0.1. */
const nowMs = (): number => Number(process.hrtime.bigint()) / 1e6;

const deadlines = new Set<Deadline>();
let timer: NodeJS.Timeout | undefined;
let armedFor = Number.POSITIVE_INFINITY;

/**
 * Calls `missed` once `ms` milliseconds have passed; what is returned says that it was met. It does not keep the event
 * loop alive.
 *
 * Most are met, thousands of times sooner than they would be missed: with a timer for each, setting it and taking it off
 * again would be a tenth of what a launch costs Node. There is one for all, which stays where it is when a deadline is
 * met, and looks for the next one when it rings.
 */
export function deadline(ms: number, missed: () => void): () => void {
  const added = { at: nowMs() + ms, missed };
  deadlines.add(added);
  if (added.at < armedFor) arm(added.at);
  return () => deadlines.delete(added);
}

function arm(at: number): void {
  clearTimeout(timer);
  armedFor = at;
  timer = setTimeout(ring, Math.max(1, Math.ceil(at - nowMs()))).unref();
}

function ring(): void {
  const now = nowMs();
  const late: Deadline[] = [];
  let next = Number.POSITIVE_INFINITY;
  for (const entry of deadlines) {
    if (entry.at <= now) late.push(entry);
    else next = Math.min(next, entry.at);
  }
  // Of several that are over at once the first comes first: Node may have been busy for longer than lies between them.
  late.sort((left, right) => left.at - right.at);
  armedFor = Number.POSITIVE_INFINITY;
  if (next < armedFor) arm(next);
  // What met one in time may wait to be heard of, where Node was busy with something else: first, by the launcher's
  // answer, that there is a process to listen to, then what that says.
  setImmediate(() => {
    setImmediate(() => {
      for (const entry of late) if (deadlines.delete(entry)) entry.missed();
    });
  });
}
