// @ts-check
/**
 * What the frontier view draws, without drawing it: columns of steps, and the largest tensors stacked over them.
 *
 * @typedef {{ value: Int32Array, first: Int32Array, last: Int32Array, bytes: Float64Array, bySize: Int32Array,
 *             order: Int32Array }} Lives
 * @typedef {{ starts: Float64Array, ends: Float64Array, step: Int32Array }} Columns
 * @typedef {{ life: number, column: number, end: number, low: number }} Run
 */

/**
 * The lives of values, sorted once for a plan: by size for choosing bands, by first step for stacking them.
 * @param {Int32Array} table rows of value, first step, last step
 * @param {Float64Array} bytes of the buffer of each
 * @returns {Lives}
 */
export function livesOf(table, bytes) {
  const n = table.length / 3;
  const [value, first, last] = [new Int32Array(n), new Int32Array(n), new Int32Array(n)];
  for (let i = 0; i < n; i += 1) {
    value[i] = table[3 * i];
    first[i] = table[3 * i + 1];
    last[i] = table[3 * i + 2];
  }
  const bySize = Int32Array.from({ length: n }, (_, i) => i).sort((a, b) => bytes[b] - bytes[a] || a - b);
  const order = new Int32Array(n);
  Int32Array.from({ length: n }, (_, i) => i)
    .sort((a, b) => first[a] - first[b] || last[b] - last[a] || a - b)
    .forEach((life, rank) => {
      order[life] = rank;
    });
  return { value, first, last, bytes, bySize, order };
}

/**
 * One column per visible step, or per pixel where steps outnumber pixels; its step is the one with most live bytes.
 * @param {ArrayLike<number>} live
 * @param {number} x0
 * @param {number} x1
 * @param {number} pixels
 * @returns {Columns}
 */
export function columnsOf(live, x0, x1, pixels) {
  const begin = Math.max(0, Math.floor(x0));
  const end = Math.min(live.length, Math.ceil(x1));
  const n = Math.max(0, Math.min(end - begin, Math.floor(pixels)));
  const [starts, ends, step] = [new Float64Array(n), new Float64Array(n), new Int32Array(n)];
  for (let c = 0; c < n; c += 1) {
    const a = begin + Math.floor((c * (end - begin)) / n);
    const b = begin + Math.floor(((c + 1) * (end - begin)) / n);
    let best = a;
    for (let i = a + 1; i < b; i += 1) if (live[i] > live[best]) best = i;
    starts[c] = a;
    ends[c] = b;
    step[c] = best;
  }
  return { starts, ends, step };
}

/**
 * The largest lives seen in the columns, at most `most` of them, in the order in which they are stacked.
 * @param {Lives} lives
 * @param {Columns} columns
 * @param {number} most
 * @param {(sorted: ArrayLike<number>, x: number) => number} search
 */
export function chosenLives(lives, columns, most, search) {
  const { step } = columns;
  /** @type {{ life: number, from: number, to: number }[]} */
  const out = [];
  if (!step.length) return out;
  for (const life of lives.bySize) {
    if (!lives.bytes[life]) break;
    if (lives.last[life] < step[0] || lives.first[life] > step[step.length - 1]) continue;
    const from = search(step, lives.first[life]);
    const to = search(step, lives.last[life] + 1);
    if (to > from) out.push({ life, from, to });
    if (out.length === most) break;
  }
  return out.sort((a, b) => lives.order[a.life] - lives.order[b.life]);
}

/**
 * Stack lives over columns; runs of columns at one height make one rectangle.
 * @param {Lives} lives
 * @param {{ life: number, from: number, to: number }[]} chosen
 * @param {number} nColumns
 * @returns {{ runs: Run[], top: Float64Array }} `top` is what all of them take together in each column
 */
export function stacked(lives, chosen, nColumns) {
  const top = new Float64Array(nColumns);
  /** @type {Run[]} */
  const runs = [];
  for (const { life, from, to } of chosen) {
    const bytes = lives.bytes[life];
    let begin = from;
    for (let c = from; c < to; c += 1) {
      if (c + 1 === to || top[c + 1] !== top[c]) {
        runs.push({ life, column: begin, end: c + 1, low: top[c] });
        begin = c + 1;
      }
    }
    for (let c = from; c < to; c += 1) top[c] += bytes;
  }
  return { runs, top };
}

/**
 * The life drawn at some height of a column, or -1: the tensors too small for a band of their own, or nothing.
 * @param {Lives} lives
 * @param {Run[]} runs
 * @param {number} column
 * @param {number} bytes
 */
export function lifeAt(lives, runs, column, bytes) {
  for (const run of runs) {
    if (run.column <= column && column < run.end && run.low <= bytes && bytes < run.low + lives.bytes[run.life]) {
      return run.life;
    }
  }
  return -1;
}
