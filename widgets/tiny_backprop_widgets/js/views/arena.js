// @ts-check
/**
 * What the memory map draws, without drawing it: which buffers are in sight, under the pointer, alive at a position.
 *
 * @typedef {{ number: Int32Array, first: Int32Array, last: Int32Array, freed: Int32Array, low: Float64Array,
 *             bytes: Float64Array, offset: Float64Array, bySize: Int32Array }} Arena
 * @typedef {{ x0: number, x1: number, y0: number, y1: number }} Sight positions and bytes, from and to
 */

/**
 * The buffers of a map, column by column.
 * @param {Int32Array} lives rows of number, first use, last use, position where it is freed
 * @param {Float64Array} places rows of where it begins on the axis, bytes, offset in its allocation
 * @returns {Arena}
 */
export function arenaOf(lives, places) {
  const n = lives.length / 4;
  const [number, first, last, freed] = [0, 1, 2, 3].map((k) =>
    Int32Array.from({ length: n }, (_, i) => lives[4 * i + k]),
  );
  const [low, bytes, offset] = [0, 1, 2].map((k) => Float64Array.from({ length: n }, (_, i) => places[3 * i + k]));
  const bySize = Int32Array.from({ length: n }, (_, i) => i).sort((a, b) => bytes[b] - bytes[a] || a - b);
  return { number, first, last, freed, low, bytes, offset, bySize };
}

/**
 * The buffers of which some part is in sight, in their order.
 * @param {Arena} arena
 * @param {Sight} sight
 */
export function inSight({ first, freed, low, bytes }, { x0, x1, y0, y1 }) {
  const out = [];
  for (let i = 0; i < first.length; i += 1) {
    if (first[i] < x1 && freed[i] > x0 && low[i] < y1 && low[i] + bytes[i] > y0) out.push(i);
  }
  return out;
}

/**
 * The buffer at a place, or the nearest within a tolerance, or -1; the smaller of two at the same distance.
 * @param {Arena} arena
 * @param {number} x
 * @param {number} y
 * @param {number} dx how far beside it still counts, in positions
 * @param {number} dy and in bytes
 */
export function bufferAt({ first, freed, low, bytes }, x, y, dx, dy) {
  let [best, least] = [-1, Number.POSITIVE_INFINITY];
  for (let i = 0; i < first.length; i += 1) {
    const besideX = Math.max(first[i] - x, x - freed[i], 0);
    const besideY = Math.max(low[i] - y, y - low[i] - bytes[i], 0);
    if (besideX > dx || besideY > dy) continue;
    const far = besideX / (dx || 1) + besideY / (dy || 1);
    if (far < least || (far === least && bytes[i] < bytes[best])) [best, least] = [i, far];
  }
  return best;
}

/**
 * The buffers alive at a position, largest first.
 * @param {Arena} arena
 * @param {number} position
 */
export function aliveAt({ first, freed, bySize }, position) {
  return Array.from(bySize).filter((i) => first[i] <= position && position < freed[i]);
}

/**
 * An interval moved and stretched so that it lies within 0 to `most` and is at least `least` long.
 * @param {number} a
 * @param {number} b
 * @param {number} most
 * @param {number} least
 * @returns {[number, number]}
 */
export function within(a, b, most, least) {
  const span = Math.min(most, Math.max(Math.min(least, most), b - a));
  const middle = b - a < span ? (a + b - span) / 2 : a;
  const begin = Math.max(0, Math.min(middle, most - span));
  return [begin, begin + span];
}
