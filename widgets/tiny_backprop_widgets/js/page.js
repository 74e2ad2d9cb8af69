// @ts-check
/** The views in a page of their own, without a kernel: a report. What is chosen in one is chosen in the others. */
import { renderFrontier } from "./frontier.js";
import { renderGraph } from "./graph.js";
import { renderMemoryMap } from "./memory_map.js";
import { renderPareto } from "./pareto.js";
import { renderTable } from "./table.js";

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

/** @param {string} text */
function unpacked(text) {
  const letters = atob(text);
  const bytes = new Uint8Array(letters.length);
  for (let i = 0; i < letters.length; i += 1) bytes[i] = letters.charCodeAt(i);
  return new DataView(bytes.buffer);
}

/** Draw every element with `data-view`, from the page's own JSON. */
export function start() {
  const views = JSON.parse(document.getElementById("tb-data")?.textContent ?? "{}");
  /** @type {Record<string, LocalModel>} */
  const models = {};
  for (const el of /** @type {NodeListOf<HTMLElement>} */ (document.querySelectorAll("[data-view]"))) {
    const { kind, state, buffers } = views[el.dataset.view ?? ""];
    for (const [name, text] of Object.entries(buffers)) state[name] = unpacked(/** @type {string} */ (text));
    const model = new LocalModel(state);
    models[kind] ??= model;
    el.replaceChildren();
    RENDERERS[kind]({ model, el });
  }
  link(models);
}

const FATES = ["forward, freed at once", "saved", "recomputed", "gradient"];

/** The row of a tensor that is not alive at the peak, as Python would add it. @param {LocalModel} frontier @param {number} value */
function rowOf(frontier, value) {
  const strings = frontier.get("_strings");
  const table = frontier.get("_value_table");
  const nodes = frontier.get("_node_table");
  const node = table.getInt32(8 * value, true);
  const [primitive, scope, source] = [0, 1, 2].map((k) => strings[nodes.getInt32(16 * node + 4 * k, true)]);
  const type = strings[table.getInt32(8 * value + 4, true)];
  const bytes = frontier.get("_value_bytes").getFloat64(8 * value, true);
  return [
    value,
    bytes,
    type,
    FATES[frontier.get("_fates").getUint8(value)],
    `${primitive}, node ${node}`,
    scope,
    source,
  ];
}

/** @param {Record<string, LocalModel>} models */
function link({ frontier, table, graph }) {
  if (!frontier) return;
  const values = frontier.get("_value_table");
  const shown = table?.get("_rows");
  /** @param {number | null} value */
  const choose = (value) => {
    frontier.set("value", value);
    if (shown) {
      const isKnown = value === null || shown.rows.some((/** @type {any[]} */ row) => row[0] === value);
      table.set("_rows", isKnown ? shown : { ...shown, rows: [rowOf(frontier, value), ...shown.rows] });
    }
    table?.set("value", value);
    if (value !== null) graph?.set("value", values.getInt32(8 * value, true));
  };
  frontier.on("change:value", () => choose(frontier.get("value")));
  table?.on("change:value", () => choose(table.get("value")));
  graph?.on("change:value", () => {
    const node = graph.get("value");
    for (let v = 0; node !== null && 8 * v < values.byteLength; v += 1) {
      if (values.getInt32(8 * v, true) === node) return choose(v);
    }
  });
}

start();
