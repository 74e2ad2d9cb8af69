// Numbers and texts as they stand in the views.
import assert from "node:assert/strict";
import { test } from "node:test";
import { numbers } from "../../widgets/tiny_backprop_widgets/js/shared/model.js";
import { lowerBound, ticks } from "../../widgets/tiny_backprop_widgets/js/shared/ranges.js";
import { formatBytes, shortened, shortPath } from "../../widgets/tiny_backprop_widgets/js/shared/text.js";
import { fateOf } from "../../widgets/tiny_backprop_widgets/js/views/graph.js";

test("bytes are written with IEC units and three digits", () => {
  const expected = {
    0: "0 B",
    1023: "1023 B",
    1536: "1.5 KiB",
    1048576: "1 MiB",
    368345088: "351 MiB",
    1072693248: "1023 MiB",
  };
  for (const [n, text] of Object.entries(expected)) assert.equal(formatBytes(Number(n)), text);
  assert.equal(formatBytes(2 ** 60), "1024 PiB");
});

test("long texts are cut, and what turns the direction of writing is taken out", () => {
  assert.equal(Array.from(shortened("😀".repeat(10_000))).length, 240);
  assert.equal(shortened("a\u202eb\nc"), "a b c");
  assert.equal(shortened("short"), "short");
});

test("source lines keep the last folder", () => {
  assert.equal(shortPath("/a/b/c/d.py:3 (f)"), "…/c/d.py:3 (f)");
  assert.equal(shortPath("d.py:3"), "d.py:3");
});

test("binary traits are read whatever their place in a message", () => {
  const message = new Uint8Array(3 + 16);
  new DataView(message.buffer, 3).setFloat64(8, 2.5, true);
  const model = { get: () => new DataView(message.buffer, 3, 16) };
  assert.deepEqual(Array.from(numbers(model, "x", Float64Array)), [0, 2.5]);
  assert.equal(numbers({ get: () => null }, "x", Float64Array).length, 0);
});

test("ticks are round and inside", () => {
  assert.deepEqual(ticks(0, 100, 5), [0, 20, 40, 60, 80, 100]);
  assert.deepEqual(ticks(0, 3 * 2 ** 20, 3, 1024), [0, 2 ** 20, 2 * 2 ** 20, 3 * 2 ** 20]);
  assert.deepEqual(ticks(5, 5, 3), []);
});

test("a sorted array is searched as a linear scan would", () => {
  const sorted = [1, 3, 3, 7];
  for (const x of [0, 1, 2, 3, 4, 7, 8]) {
    const scanned = sorted.findIndex((y) => y >= x);
    assert.equal(lowerBound(sorted, x), scanned < 0 ? 4 : scanned);
  }
});

test("a box is called by most of its bytes", () => {
  assert.equal(fateOf(true, 5, 0), "gradient");
  assert.equal(fateOf(false, 5, 5), "saved");
  assert.equal(fateOf(false, 4, 5), "recomputed");
  assert.equal(fateOf(false, 0, 0), "transient");
});
