import type { Results } from '../results.js';
export function renderPage(results: Results): string {
  return JSON.stringify(results.machine);
}
