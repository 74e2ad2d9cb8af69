// @ts-check
/** The views in a page of their own, without a kernel: a report. What is chosen in one is chosen in the others. */
import { element } from "../shared/elements.js";
import { numbers } from "../shared/model.js";
import { shortened } from "../shared/text.js";
import { FATES, renderFrontier } from "../views/frontier.js";
import { renderGraph } from "../views/graph.js";
import { renderMemoryMap } from "../views/memory_map.js";
import { renderPareto } from "../views/pareto.js";
import { renderTable } from "../views/table.js";

/** @type {Record<string, (context: { model: any, el: HTMLElement }) => void>} */
const RENDERERS = {
  frontier: renderFrontier,
  graph: renderGraph,
  memory_map: renderMemoryMap,
  pareto: renderPareto,
  table: renderTable,
};

/** The traits of a view as anywidget's model has them, without a kernel behind them. */
export class LocalModel {
  /** @param {Record<string, any>} state */
  constructor(state) {
    this.state = state;
    /** @type {Map<string, Set<() => void>>} */
    this.callbacks = new Map();
  }
  /** @param {string} name */
  get(name) {
    return this.state[name];
  }
  /** @param {string} name @param {any} value */
  set(name, value) {
    if (this.state[name] === value) return;
    this.state[name] = value;
    for (const callback of this.callbacks.get(`change:${name}`) ?? []) callback();
  }
  /** @param {string} event @param {() => void} callback */
  on(event, callback) {
    const known = this.callbacks.get(event) ?? new Set();
    this.callbacks.set(event, known.add(callback));
  }
  /** @param {string} event @param {() => void} callback */
  off(event, callback) {
    this.callbacks.get(event)?.delete(callback);
  }
  save_changes() {}
}

/**
 * What Python has packed (`page.py`): the length of a JSON text, the text, and the bytes it has places of.
 * @param {string} text base64 of all that, compressed
 * @returns {Promise<Record<string, { kind: string, state: Record<string, any> }>>}
 */
async function unpacked(text) {
  const packed = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  const whole = await new Response(stream).arrayBuffer();
  const begin = 4 + new DataView(whole).getUint32(0, true);
  const views = JSON.parse(new TextDecoder().decode(new Uint8Array(whole, 4, begin - 4)));
  for (const { state, buffers } of Object.values(views)) {
    for (const [name, [start, length]] of Object.entries(buffers)) {
      state[name] = new DataView(whole, begin + start, length);
    }
  }
  return views;
}

/** Draw every element with `data-view`, from the page's own data; where they cannot be read, pictures stay. */
export async function start() {
  const { link: answers, ...views } = await unpacked(document.getElementById("tb-data")?.textContent ?? "");
  /** @type {Record<string, LocalModel>} */
  const models = {};
  for (const el of /** @type {NodeListOf<HTMLElement>} */ (document.querySelectorAll("[data-view]"))) {
    const { kind, state } = views[el.dataset.view ?? ""];
    const model = new LocalModel(state);
    models[kind] ??= model;
    el.replaceChildren();
    RENDERERS[kind]({ model, el });
  }
  for (const el of /** @type {NodeListOf<HTMLElement>} */ (document.querySelectorAll(".tb-live"))) el.hidden = false;
  const note = element("div", "tb-note");
  note.dir = "auto";
  document.querySelector(".tb-tensors")?.append(note);
  if (models.frontier) link(models, answers ? linkOf(new LocalModel(answers.state)) : null, note);
}

/**
 * What is chosen together in the memory map and the other views, worked out by Python (`map_link.py`).
 * @param {LocalModel} answers
 */
export function linkOf(answers) {
  const [starts, buffers, positions, values, noteStarts, notes] = [
    "_starts",
    "_buffers",
    "_positions",
    "_values",
    "_note_starts",
    "_notes",
  ].map((name) => numbers(answers, name, Int32Array));
  const parts = /** @type {string[]} */ (answers.get("_parts"));
  /** @param {number} i */
  const note = (i) => Array.from(notes.subarray(noteStarts[i], noteStarts[i + 1]), (k) => parts[k]).join("");
  return {
    /** The buffers that hold a tensor, the one to choose first. @param {number} value */
    buffersOf: (value) => Array.from(buffers.subarray(starts[value], starts[value + 1])),
    /** The position whose tensors are then listed; null is the peak's. @param {number} value */
    positionOf: (value) => (positions[value] < 0 ? null : positions[value]),
    /** The tensor that a buffer holds. @param {number} buffer */
    valueOf: (buffer) => (values[buffer] < 0 ? null : values[buffer]),
    /** @param {number} value */
    noteOfValue: (value) => note(value),
    /** @param {number} buffer */
    noteOfBuffer: (buffer) => note(values[buffer] < 0 ? positions.length + buffer : values[buffer]),
  };
}

/**
 * What is told of the tensors of the frontier, as Python tells it.
 * @param {LocalModel} frontier
 */
function tensorsOf(frontier) {
  const strings = frontier.get("_strings");
  const table = numbers(frontier, "_value_table", Int32Array);
  const nodes = numbers(frontier, "_node_table", Int32Array);
  const bytes = numbers(frontier, "_value_bytes", Float64Array);
  const fates = numbers(frontier, "_fates", Uint8Array);
  const lives = numbers(frontier, "_lives", Int32Array);
  const peak = frontier.get("_facts").peak_step;
  /** The node that makes a tensor, -1 for inputs. @param {number} value */
  const nodeOf = (value) => table[2 * value];
  /** The row of a tensor. @param {number} value */
  const rowOf = (value) => {
    const node = nodeOf(value);
    const [primitive, scope, source] = [0, 1, 2].map((k) => strings[nodes[4 * node + k]]);
    const made = `${primitive}, node ${node}`;
    return [value, bytes[value], strings[table[2 * value + 1]], FATES[fates[value]], made, scope, source];
  };
  /** The largest tensor that a node makes. @param {number} node */
  const largestOf = (node) => {
    let best = /** @type {number | null} */ (null);
    for (let v = 0; v < bytes.length; v += 1) {
      if (nodeOf(v) === node && (best === null || bytes[v] > bytes[best])) best = v;
    }
    return best;
  };
  /** @param {number} value */
  const isAliveAtPeak = (value) => {
    for (let i = 0; i < lives.length; i += 3) {
      if (lives[i] === value && lives[i + 1] <= peak && peak <= lives[i + 2]) return true;
    }
    return false;
  };
  return { nodeOf, rowOf, largestOf, isAliveAtPeak };
}

/**
 * Have what is chosen in one view be chosen in all, as the explorer does.
 * @param {Record<string, LocalModel>} models
 * @param {ReturnType<typeof linkOf> | null} together
 * @param {HTMLElement} note what the map says of a tensor, beside the tensors
 */
function link({ frontier, table, graph, memory_map: map }, together, note) {
  const tensors = tensorsOf(frontier);
  const shown = table?.get("_rows");
  let isLinking = false;
  /** @param {() => void} act */
  const once = (act) => {
    if (isLinking) return;
    isLinking = true;
    act();
    isLinking = false;
  };
  /** @param {number | null} value */
  function chooseInPlan(value) {
    const node = value === null ? -1 : tensors.nodeOf(value);
    const isKnown = node < 0 || shown?.rows.some((/** @type {any[]} */ row) => row[0] === value);
    frontier.set("value", value);
    if (isKnown || value === null) table?.set("_rows", shown);
    else {
      const caption = tensors.isAliveAtPeak(value) ? "" : "; the first row is chosen, and not alive then";
      const rows = [tensors.rowOf(value), ...(shown?.rows ?? [])];
      table?.set("_rows", { ...shown, rows, caption: `${shown?.caption}${caption}` });
    }
    table?.set("value", value);
    note.textContent = value === null || !together ? "" : shortened(together.noteOfValue(value), 900);
    graph?.set("value", node < 0 ? null : node);
  }
  /** @param {number | null} value */
  function choose(value) {
    chooseInPlan(value);
    if (!together || !map) return;
    const [first, ...others] = value === null ? [] : together.buffersOf(value);
    map.set("marked", others);
    map.set("note", value === null ? "" : together.noteOfValue(value));
    map.set("value", first ?? null);
    if (value !== null && first !== undefined) map.set("position", together.positionOf(value));
  }
  /** @param {number | null} buffer */
  function chooseBuffer(buffer) {
    const value = buffer === null ? null : (together?.valueOf(buffer) ?? null);
    const held = value === null ? [] : (together?.buffersOf(value) ?? []);
    map.set(
      "marked",
      held.filter((i) => i !== buffer),
    );
    map.set("note", buffer === null ? "" : together?.noteOfBuffer(buffer));
    chooseInPlan(value);
  }
  for (const view of [frontier, table]) view?.on("change:value", () => once(() => choose(view.get("value"))));
  graph?.on("change:value", () =>
    once(() => {
      const node = graph.get("value");
      choose(node === null ? null : tensors.largestOf(node));
    }),
  );
  if (together) map?.on("change:value", () => once(() => chooseBuffer(map.get("value"))));
}

await start();
