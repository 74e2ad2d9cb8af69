// What the memory map draws, held against a grid of cells that buffers are painted into one by one.
import assert from "node:assert/strict";
import { test } from "node:test";
import { aliveAt, arenaOf, bufferAt, inSight, within } from "../../widgets/tiny_backprop_widgets/js/views/arena.js";

/** Numbers that are the same on every run. */
function random(seed) {
  let state = seed;
  return () => {
    state = (state * 1103515245 + 12345) % 2147483648;
    return state / 2147483648;
  };
}

const N = 40;
const MOST = 60;

/** Buffers as XLA places them: each gets bytes and positions that no other has. */
function packed(seed) {
  const next = random(seed);
  const grid = Array.from({ length: N }, () => new Int32Array(MOST).fill(-1));
  const lives = [];
  const places = [];
  for (let tries = 0; tries < 400; tries += 1) {
    const [first, low] = [Math.floor(next() * N), Math.floor(next() * MOST)];
    const [span, bytes] = [1 + Math.floor(next() * 9), 1 + Math.floor(next() * 9)];
    const freed = first + span;
    if (freed > N || low + bytes > MOST) continue;
    const cells = grid.slice(first, freed).map((column) => column.subarray(low, low + bytes));
    if (cells.some((column) => column.some((cell) => cell >= 0))) continue;
    const i = lives.length / 4;
    for (const column of cells) column.fill(i);
    lives.push(100 + i, first, freed - 1, freed);
    places.push(low, bytes, low);
  }
  return { arena: arenaOf(Int32Array.from(lives), Float64Array.from(places)), grid };
}

test("columns are what the rows have, and the order by size is one of sizes", () => {
  const arena = arenaOf(Int32Array.of(7, 1, 2, 3, 9, 4, 6, 6), Float64Array.of(10, 5, 2, 20, 50, 0));
  assert.deepEqual(Array.from(arena.number), [7, 9]);
  assert.deepEqual([arena.first[1], arena.last[1], arena.freed[1]], [4, 6, 6]);
  assert.deepEqual([arena.low[0], arena.bytes[0], arena.offset[0]], [10, 5, 2]);
  assert.deepEqual(Array.from(arena.bySize), [1, 0]);
});

test("an empty map has nothing in sight, under the pointer, or alive", () => {
  const arena = arenaOf(new Int32Array(0), new Float64Array(0));
  assert.deepEqual(inSight(arena, { x0: 0, x1: 1, y0: 0, y1: 1 }), []);
  assert.equal(bufferAt(arena, 0, 0, 5, 5), -1);
  assert.deepEqual(aliveAt(arena, 0), []);
});

test("what is in sight is what has a cell in it", () => {
  for (const seed of [1, 2, 3]) {
    const { arena, grid } = packed(seed);
    assert.ok(arena.number.length > 30);
    for (const [x0, x1, y0, y1] of [
      [0, N, 0, MOST],
      [5, 9, 10, 30],
      [17, 18, 0, MOST],
      [0, N, 31, 32],
    ]) {
      const wanted = new Set(grid.slice(x0, x1).flatMap((column) => Array.from(column.subarray(y0, y1))));
      wanted.delete(-1);
      const found = inSight(arena, { x0, x1, y0, y1 });
      assert.deepEqual(
        found,
        [...wanted].sort((a, b) => a - b),
      );
    }
  }
});

test("the buffer under the pointer is the one that has the cell", () => {
  const { arena, grid } = packed(4);
  for (let x = 0; x < N; x += 1)
    for (let y = 0; y < MOST; y += 1) assert.equal(bufferAt(arena, x + 0.5, y + 0.5, 0, 0), grid[x][y]);
});

test("beside a buffer the nearest within reach counts, and of two as near the smaller", () => {
  const arena = arenaOf(Int32Array.of(0, 0, 1, 2, 1, 5, 6, 7), Float64Array.of(0, 10, 0, 0, 4, 0));
  assert.equal(bufferAt(arena, 2.4, 2, 0.5, 1), 0);
  assert.equal(bufferAt(arena, 2.6, 2, 0.5, 1), -1);
  assert.equal(bufferAt(arena, 4.6, 2, 3, 1), 1);
  assert.equal(bufferAt(arena, 3.5, 2, 3, 1), 1);
  assert.equal(bufferAt(arena, 6, 4.9, 3, 1), 1);
  assert.equal(bufferAt(arena, 6, 5.1, 3, 1), -1);
});

test("what is alive at a position is what has a cell in its column, largest first", () => {
  const { arena, grid } = packed(5);
  for (let x = 0; x < N; x += 1) {
    const wanted = new Set(grid[x]);
    wanted.delete(-1);
    const found = aliveAt(arena, x);
    assert.deepEqual(new Set(found), wanted);
    assert.equal(found.length, wanted.size);
    for (let k = 1; k < found.length; k += 1) assert.ok(arena.bytes[found[k - 1]] >= arena.bytes[found[k]]);
  }
});

test("an interval stays inside, keeps its length where it can, and is never too short", () => {
  assert.deepEqual(within(-5, 5, 100, 4), [0, 10]);
  assert.deepEqual(within(95, 105, 100, 4), [90, 100]);
  assert.deepEqual(within(20, 50, 100, 4), [20, 50]);
  assert.deepEqual(within(50, 51, 100, 4), [48.5, 52.5]);
  assert.deepEqual(within(-10, 300, 100, 4), [0, 100]);
  assert.deepEqual(within(0, 1, 2, 4), [0, 2]); // shorter than the shortest
});
