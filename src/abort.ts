/** What each signal ends, and the one listener that it has of ours. */
const ends = new WeakMap<AbortSignal, { readonly listeners: Set<() => void>; readonly abort: () => void }>();

/**
 * Calls `listener` when `signal` aborts; what is returned takes it off again. Where it has aborted already nothing is
 * called, as with any event that has passed.
 *
 * A signal has one listener of ours, however many VMs it ends: Node 20 warns of a leak from the eleventh on. (From
 * Node 22 on signals have no limit. fetch() raises it, but the signal is the caller's, and so are its settings.)
 */
export function onAbort(signal: AbortSignal | undefined, listener: () => void): () => void {
  if (signal === undefined) return () => {};
  const shared = ends.get(signal) ?? listen(signal);
  shared.listeners.add(listener);
  return () => {
    shared.listeners.delete(listener);
    if (shared.listeners.size > 0 || ends.get(signal) !== shared) return;
    ends.delete(signal);
    signal.removeEventListener('abort', shared.abort);
  };
}

function listen(signal: AbortSignal) {
  const listeners = new Set<() => void>();
  const abort = () => {
    for (const listener of listeners) listener();
  };
  const shared = { listeners, abort };
  ends.set(signal, shared);
  signal.addEventListener('abort', abort, { once: true });
  return shared;
}
