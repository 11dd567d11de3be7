/** The little of SVG that the charts need. Colours are classes: the page's style sheet has them, for light and dark. */

export const escapeText = (text: string): string =>
  text.replace(/[&<>"]/g, (sign) => ({ '&': '&amp;', '<': '&lt;', '>': '&gt;', '"': '&quot;' })[sign] as string);

/** An element; attributes that are undefined are left out. */
export function tag(
  name: string,
  attributes: Readonly<Record<string, string | number | undefined>>,
  ...children: readonly string[]
): string {
  const list = Object.entries(attributes)
    .filter(([, value]) => value !== undefined)
    .map(([key, value]) => ` ${key}="${typeof value === 'number' ? round(value) : escapeText(value as string)}"`)
    .join('');
  return `<${name}${list}>${children.join('')}</${name}>`;
}

const round = (value: number): string => String(Math.round(value * 100) / 100);

export function text(
  x: number,
  y: number,
  words: string,
  kind = '',
  anchor: 'start' | 'middle' | 'end' = 'start',
): string {
  return tag('text', { x, y, class: kind, 'text-anchor': anchor }, escapeText(words));
}

export function line(x1: number, y1: number, x2: number, y2: number, kind: string): string {
  return tag('line', { x1, y1, x2, y2, class: kind });
}

/** A box that says more when pointed at. */
export function box(x: number, y: number, width: number, height: number, kind: string, hint: string): string {
  return tag(
    'rect',
    { x, y, width: Math.max(width, 0.6), height, rx: 1.5, class: kind },
    tag('title', {}, escapeText(hint)),
  );
}

export function svg(width: number, height: number, label: string, ...children: readonly string[]): string {
  return tag('svg', { viewBox: `0 0 ${width} ${height}`, role: 'img', 'aria-label': label }, ...children);
}

/** Where a value stands between two ends of the picture. */
export type Scale = (value: number) => number;

export function linear(from: number, to: number, left: number, right: number): Scale {
  return (value) => left + ((value - from) / (to - from || 1)) * (right - left);
}

export function logarithmic(from: number, to: number, left: number, right: number): Scale {
  const scale = linear(Math.log(from), Math.log(to), left, right);
  return (value) => scale(Math.log(value));
}

/** Round numbers for an axis, about so many. */
export function ticks(to: number, count: number): number[] {
  const raw = to / count;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = ([1, 2, 5, 10].find((factor) => factor * power >= raw) ?? 10) * power;
  return Array.from({ length: Math.floor(to / step) + 1 }, (_, index) => index * step);
}

/** 1, 2, 5, 10, 20, ... within a range. */
export function logTicks(from: number, to: number): number[] {
  const list: number[] = [];
  for (let power = Math.floor(Math.log10(from)); power <= Math.log10(to); power += 1) {
    for (const factor of [1, 2, 5]) list.push(factor * 10 ** power);
  }
  return list.filter((value) => value >= from && value <= to);
}
