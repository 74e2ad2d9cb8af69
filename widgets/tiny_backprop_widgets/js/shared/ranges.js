// @ts-check
/** Places in sorted numbers, and round steps between two. */

/**
 * The index of the first entry of a sorted array that is at least `x`.
 * @param {ArrayLike<number>} sorted
 * @param {number} x
 */
export function lowerBound(sorted, x) {
  let low = 0;
  let high = sorted.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (sorted[middle] < x) low = middle + 1;
    else high = middle;
  }
  return low;
}

/**
 * Round steps between two ends, about `n` of them; `base` 1024 for bytes.
 * @param {number} low
 * @param {number} high
 * @param {number} n
 */
export function ticks(low, high, n, base = 10) {
  const span = high - low;
  if (!(span > 0)) return [];
  const scale = base === 1024 ? 1024 ** Math.max(0, Math.floor(Math.log(high) / Math.log(1024))) : 1;
  const raw = span / n / scale;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = ([1, 2, 5, 10].find((k) => k * power >= raw) ?? 10) * power * scale;
  const out = [];
  for (let i = Math.ceil(low / step); i * step <= high; i += 1) out.push(i * step);
  return out;
}
