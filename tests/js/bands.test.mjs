// What the frontier view draws, held against sums that are worked out another way.
import assert from "node:assert/strict";
import { test } from "node:test";
import { lowerBound } from "../../widgets/tiny_backprop_widgets/js/shared/ranges.js";
import {
  chosenLives,
  columnsOf,
  lifeAt,
  livesOf,
  stacked,
} from "../../widgets/tiny_backprop_widgets/js/views/bands.js";

/** Numbers that are the same on every run. */
function random(seed) {
  let state = seed;
  return () => {
    state = (state * 1103515245 + 12345) % 2147483648;
    return state / 2147483648;
  };
}

function program(nValues, nSteps, seed) {
  const next = random(seed);
  const bytes = Float64Array.from({ length: nValues }, () => 1 + Math.floor(next() * 100));
  const rows = [];
  for (let v = 0; v < nValues; v += 1) {
    const first = Math.floor(next() * nSteps);
    rows.push(v, first, Math.min(nSteps - 1, first + Math.floor(next() * nSteps * 0.3)));
  }
  const live = new Float64Array(nSteps);
  for (let i = 0; i < rows.length; i += 3)
    for (let s = rows[i + 1]; s <= rows[i + 2]; s += 1) live[s] += bytes[rows[i]];
  return { lives: livesOf(Int32Array.from(rows), bytes), live, bytes };
}

test("with a band for every tensor, bands add up to the live bytes of every step", () => {
  const { lives, live } = program(60, 200, 1);
  const columns = columnsOf(live, 0, 200, 1000);
  const { top } = stacked(lives, chosenLives(lives, columns, 60, lowerBound), columns.step.length);
  assert.deepEqual(Array.from(top), Array.from(live));
});

test("where steps outnumber pixels, each column shows its step with most bytes", () => {
  const { lives, live } = program(300, 5000, 2);
  const columns = columnsOf(live, 0, 5000, 100);
  assert.equal(columns.step.length, 100);
  assert.equal(Math.max(...Array.from(columns.step, (s) => live[s])), Math.max(...live));
  const { top } = stacked(lives, chosenLives(lives, columns, 300, lowerBound), 100);
  for (const [i, s] of columns.step.entries()) assert.equal(top[i], live[s]);
});

test("bands are the largest tensors in sight", () => {
  const { lives, live, bytes } = program(200, 400, 3);
  const columns = columnsOf(live, 100, 150, 1000);
  const chosen = chosenLives(lives, columns, 10, lowerBound).map(({ life }) => bytes[lives.value[life]]);
  const seen = Array.from(bytes).filter((_, v) => lives.first[v] < 150 && lives.last[v] >= 100);
  assert.deepEqual(
    chosen.sort((a, b) => b - a),
    seen.sort((a, b) => b - a).slice(0, 10),
  );
});

test("what is under the pointer is the band that is painted there, and nothing above the stack", () => {
  const { lives, live } = program(40, 50, 4);
  const columns = columnsOf(live, 0, 50, 1000);
  const { runs, top } = stacked(lives, chosenLives(lives, columns, 40, lowerBound), 50);
  for (let column = 0; column < 50; column += 7) {
    const alive = new Set();
    for (let b = 0; b < top[column]; b += 0.5) alive.add(lifeAt(lives, runs, column, b));
    const expected = lives.bySize.filter((l) => lives.first[l] <= column && column <= lives.last[l]);
    assert.deepEqual(
      [...alive].sort((a, b) => a - b),
      Array.from(expected).sort((a, b) => a - b),
    );
    assert.equal(lifeAt(lives, runs, column, top[column]), -1);
  }
});

test("nothing to draw is drawn without an error", () => {
  const lives = livesOf(new Int32Array(0), new Float64Array(0));
  const columns = columnsOf(new Float64Array(0), 0, 1, 100);
  assert.equal(columns.step.length, 0);
  assert.deepEqual(chosenLives(lives, columns, 5, lowerBound), []);
});
