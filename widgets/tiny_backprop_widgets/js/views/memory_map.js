// @ts-check
/** The memory map: XLA's arena over the schedule, each buffer a rectangle; zoom, pan, hover, choose, and a table. */
import { canvasIn } from "../shared/canvas.js";
import { byteAxis, countAxis, headings, labelIn, line, pattern, plate } from "../shared/drawing.js";
import { buttons, element, tooltipIn } from "../shared/elements.js";
import { listen } from "../shared/gestures.js";
import { hideStandIn, kernelNotice, numbers, onChange } from "../shared/model.js";
import { rowsIn } from "../shared/rows.js";
import { formatBytes, shortened, shortPath } from "../shared/text.js";
import { onTheme, themeOf } from "../shared/theme.js";
import { aliveAt, arenaOf, bufferAt, inSight, within } from "./arena.js";

const HEIGHT = 380;
const LEFT = 64;
const RIGHT = 12;
const TOP = 26;
const BOTTOM = 22;
const BAR = 14;
const MOST_BAR_ROWS = 5;
const MOST_ROWS = 100;
const MOST_LABELS = 80;
const HEADER = ["bytes", "type", "kind", "memory", "made by", "scope", "source"];
/** What each text of a buffer is, by column. */
const [MEMORY, KIND, SHAPE, INSTRUCTION, OP_NAME, SCOPE, SOURCE, LOOP] = [0, 1, 2, 3, 4, 5, 6, 7];
/** @type {Record<string, ["saved" | "transient" | "recomputed" | "gradient" | "baseline", "" | "lines" | "dots"]>} */
const KINDS = {
  "saved for the backward phase": ["saved", ""],
  forward: ["transient", ""],
  recomputed: ["recomputed", "lines"],
  gradient: ["gradient", "dots"],
  other: ["baseline", ""],
};
const SCOPES = ["#56B4E9", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#B8A900", "#8C7BC8"];
/** @type {("" | "lines" | "dots")[]} */
const MARKS = ["", "lines", "dots"];

/** @param {import("../shared/model.js").Model} model */
function read(model) {
  return {
    facts: model.get("_facts"),
    arena: arenaOf(numbers(model, "_lives", Int32Array), numbers(model, "_places", Float64Array)),
    strings: /** @type {string[]} */ (model.get("_strings")),
    texts: numbers(model, "_texts", Int32Array),
    groups: numbers(model, "_groups", Uint8Array),
    schedule: numbers(model, "_schedule", Int32Array),
    live: numbers(model, "_live_bytes", Float64Array),
  };
}

/** @param {{ model: import("../shared/model.js").Model, el: HTMLElement }} context */
export function renderMemoryMap({ model, el }) {
  const root = element("div", "tb-view tb-memory-map");
  const legend = element("div", "tb-bar");
  el.append(root);
  hideStandIn(model, root);
  const map = read(model);
  const title = element("div", "tb-title", shortened(map.facts.title, 400));
  title.dir = "auto";
  root.append(title, ...map.facts.doubts.map((/** @type {string} */ d) => element("div", "tb-notice", d)), legend);
  const { arena, facts } = map;
  const [n, most] = [Math.max(1, facts.n_positions), Math.max(1, facts.top_bytes)];
  let [x0, x1, y0, y1] = [0, n, 0, most];
  let nPaints = 0;
  let hovered = -1;
  const depth = Math.min(
    MOST_BAR_ROWS,
    facts.loops.reduce((/** @type {number} */ d, /** @type {{ depth: number }} */ l) => Math.max(d, l.depth + 1), 0),
  );
  const bottom = BOTTOM + depth * BAR;
  const label =
    "Where XLA keeps each tensor: offset in memory over the schedule. Arrow keys move, plus and minus zoom, 0 shows all, N and P walk through the tensors by size.";
  const { frame, canvas, touch, stop } = canvasIn(root, HEIGHT + depth * BAR, label, paint);
  const tip = tooltipIn(frame);
  const note = element("div", "tb-note");
  note.setAttribute("aria-live", "polite");
  note.dir = "auto";
  root.append(note);
  const table = rowsIn(root, (value) => {
    choose(value, model.get("position"));
    reveal(value);
  });

  let plotted = 10; // pixels; asked of the page once a picture, which may have to lay itself out to tell
  const plotWidth = () => plotted;
  const plotHeight = () => HEIGHT - TOP - BOTTOM;
  /** @param {number} position */
  const xOf = (position) => LEFT + ((position - x0) / (x1 - x0)) * plotWidth();
  /** @param {number} bytes */
  const yOf = (bytes) => TOP + plotHeight() * (1 - (bytes - y0) / (y1 - y0));
  /** @param {number} x */
  const positionAt = (x) => x0 + ((x - LEFT) / plotWidth()) * (x1 - x0);
  /** @param {number} y */
  const bytesAt = (y) => y1 - ((y - TOP) / plotHeight()) * (y1 - y0);
  /** @param {number} i @param {number} column */
  const text = (i, column) => map.strings[map.texts[8 * i + column]];
  const position = () => model.get("position") ?? facts.peak_position;
  const groupNames = () => /** @type {string[]} */ (facts.groups[model.get("color_by")]);

  /** @param {number} a @param {number} b @param {number} low @param {number} high */
  function show(a, b, low, high) {
    [x0, x1] = within(a, b, n, 4);
    [y0, y1] = within(low, high, most, 64);
    touch();
  }
  const all = () => show(0, n, 0, most);
  /** @param {number} magnification */
  function zoom(magnification, x = LEFT + plotWidth() / 2, y = TOP + plotHeight() / 2) {
    const [at, bytes] = [positionAt(x), bytesAt(y)];
    show(
      at - (at - x0) / magnification,
      at + (x1 - at) / magnification,
      bytes - (bytes - y0) / magnification,
      bytes + (y1 - bytes) / magnification,
    );
  }
  /** @param {number} dx @param {number} dy */
  function pan(dx, dy) {
    const [by, up] = [(dx / plotWidth()) * (x1 - x0), (dy / plotHeight()) * (y1 - y0)];
    show(x0 - by, x1 - by, y0 + up, y1 + up);
  }
  function toPeak() {
    const span = Math.max(20, n / 12);
    model.set("position", null);
    model.save_changes();
    show(facts.peak_position + 0.5 - span / 2, facts.peak_position + 0.5 + span / 2, 0, most);
  }

  /** Colour and pattern of a group. @param {import("../shared/theme.js").Theme} theme @param {string} name @param {number} g @returns {[string, "" | "lines" | "dots"]} */
  function look(theme, name, g) {
    if (model.get("color_by") === "kind") {
      const [colour, mark] = KINDS[name];
      return [theme[colour], mark];
    }
    if (name === "other scopes" && g >= groupNames().length - 2) return [theme.baseline, ""];
    if (name === "no scope" && g >= groupNames().length - 2) return [theme.rest, ""];
    return [SCOPES[g % SCOPES.length], MARKS[g % 3]];
  }

  /** @param {CanvasRenderingContext2D} c @param {number} width */
  function paint(c, width) {
    plotted = Math.max(10, width - LEFT - RIGHT);
    const theme = themeOf(el);
    root.dataset.theme = theme.isDark ? "dark" : "light";
    c.font = "11px system-ui, sans-serif";
    c.save();
    c.beginPath();
    c.rect(LEFT, TOP, plotWidth(), plotHeight());
    c.clip();
    const seen = inSight(arena, { x0, x1, y0, y1 });
    paintBuffers(c, theme, seen);
    paintMarks(c, theme);
    c.restore();
    paintAxes(c, theme, width);
    paintLoops(c, theme);
    nPaints += 1;
    root.dataset.paints = String(nPaints);
    root.dataset.visible = String(seen.length);
    root.dataset.chosen = String(model.get("value") ?? "");
    root.dataset.marked = model.get("marked").join(" ");
    root.dataset.span = String(x1 - x0);
  }

  /** @param {CanvasRenderingContext2D} c @param {import("../shared/theme.js").Theme} theme @param {number[]} seen */
  function paintBuffers(c, theme, seen) {
    const column = model.get("color_by") === "kind" ? 0 : 1;
    const names = groupNames();
    /** @type {number[][]} */
    const byGroup = names.map(() => []);
    for (const i of seen) byGroup[map.groups[2 * i + column]].push(i);
    const chosen = model.get("value");
    const others = new Set(model.get("marked"));
    const labels = [];
    /** @type {[number, number, number, number, number[]][]} boxes and how their edges are dashed */
    const outlines = [];
    for (const [g, buffers] of byGroup.entries()) {
      const [colour, mark] = look(theme, names[g], g);
      const marked = [];
      for (let shade = 0; shade < 3; shade += 1) {
        c.fillStyle = colour;
        c.globalAlpha = 0.95 - 0.18 * shade;
        for (const i of buffers) {
          if (arena.number[i] % 3 !== shade) continue;
          const [left, right] = [xOf(arena.first[i]), xOf(arena.freed[i])];
          const [high, low] = [yOf(arena.low[i] + arena.bytes[i]), yOf(arena.low[i])];
          const [w, h] = [Math.max(right - left, 0.8), Math.max(low - high, 0.8)];
          const gap = h > 3 && w > 3 ? 0.6 : 0;
          c.fillRect(left, high + gap, w - gap, h - gap);
          if (mark && h > 4 && w > 4) marked.push(left, high + gap, w - gap, h - gap);
          if (arena.number[i] === chosen) outlines.push([left, high, w, h, []]);
          else if (others.has(arena.number[i])) outlines.push([left, high, w, h, [5, 3]]);
          if (h > 13 && w > 46) labels.push({ i, left, right, middle: (high + low) / 2 });
        }
      }
      if (!mark || !marked.length) continue;
      c.globalAlpha = 0.5;
      c.fillStyle = pattern(c, mark, theme.ink);
      for (let k = 0; k < marked.length; k += 4) c.fillRect(marked[k], marked[k + 1], marked[k + 2], marked[k + 3]);
    }
    c.globalAlpha = 1;
    labels.sort((a, b) => arena.bytes[b.i] - arena.bytes[a.i]);
    for (const { i, left, right, middle } of labels.slice(0, MOST_LABELS)) paintLabel(c, theme, i, left, right, middle);
    c.strokeStyle = theme.mark;
    c.lineWidth = 2.5;
    for (const [left, high, w, h, dashes] of outlines) {
      c.setLineDash(dashes);
      c.strokeRect(left + 1, high + 1, Math.max(1, w - 2), Math.max(1, h - 2));
    }
    c.setLineDash([]);
  }

  /** @param {CanvasRenderingContext2D} c @param {import("../shared/theme.js").Theme} theme @param {number} i @param {number} left @param {number} right @param {number} middle */
  function paintLabel(c, theme, i, left, right, middle) {
    const from = Math.max(left, LEFT) + 4;
    const room = Math.min(right, LEFT + plotWidth()) - from - 4;
    const where = text(i, SCOPE) || (text(i, SOURCE).split("/").pop() ?? "");
    const [bytes, type] = [formatBytes(arena.bytes[i]), `${formatBytes(arena.bytes[i])} ${text(i, SHAPE)}`];
    const texts = [...(where ? [`${type} · ${shortened(where, 60)}`] : []), type, bytes];
    labelIn(c, theme, texts, from, middle, room);
  }

  /** The border between temporaries and outputs, the peak, and the position of the table. @param {CanvasRenderingContext2D} c @param {import("../shared/theme.js").Theme} theme */
  function paintMarks(c, theme) {
    c.lineWidth = 1;
    if (facts.output_bytes && facts.temp_extent_bytes < most) {
      const y = Math.round(yOf(facts.temp_extent_bytes)) + 0.5;
      c.strokeStyle = theme.text;
      c.setLineDash([6, 3]);
      line(c, LEFT, y, LEFT + plotWidth(), y);
      plate(c, theme, "outputs", LEFT + 4, y - 9, "left");
      plate(c, theme, "temporaries", LEFT + 4, y + 9, "left");
    }
    if (facts.peak_live_bytes) {
      const x = xOf(facts.peak_position + 0.5);
      c.strokeStyle = theme.mark;
      c.setLineDash([4, 3]);
      line(c, x, TOP, x, TOP + plotHeight());
      c.setLineDash([]);
      c.fillStyle = theme.mark;
      c.beginPath();
      c.moveTo(x, TOP + 9);
      c.lineTo(x - 6, TOP);
      c.lineTo(x + 6, TOP);
      c.fill();
      const side = x > LEFT + plotWidth() * 0.6 ? "right" : "left";
      plate(
        c,
        theme,
        `peak: ${formatBytes(facts.peak_live_bytes)} live`,
        x + (side === "right" ? -9 : 9),
        TOP + 10,
        side,
      );
    }
    c.setLineDash([]);
    if (position() !== facts.peak_position) {
      const x = xOf(position() + 0.5);
      c.strokeStyle = theme.text;
      line(c, x, TOP, x, TOP + plotHeight());
    }
  }

  /** @param {CanvasRenderingContext2D} c @param {import("../shared/theme.js").Theme} theme @param {number} width */
  function paintAxes(c, theme, width) {
    byteAxis(c, theme, y0, y1, LEFT, yOf);
    const below = TOP + plotHeight();
    countAxis(c, x0, x1, Math.max(2, width / 130), below + depth * BAR + 5, xOf);
    c.strokeRect(LEFT + 0.5, TOP + 0.5, plotWidth() - 1, plotHeight() - 1);
    c.textBaseline = "alphabetic";
    const unit = `position of ${n.toLocaleString("en")} instructions`;
    const words = [...(facts.loops.length ? [`${unit}, loops opened once`] : []), unit, `of ${n.toLocaleString("en")}`];
    headings(c, "offset in memory, by XLA", words, 4, width - RIGHT, 13);
  }

  /** Bars for loops, branches and calls, nested ones lower. @param {CanvasRenderingContext2D} c @param {import("../shared/theme.js").Theme} theme */
  function paintLoops(c, theme) {
    c.save();
    c.beginPath();
    c.rect(LEFT, TOP + plotHeight(), plotWidth(), bottom);
    c.clip();
    c.textAlign = "center";
    c.textBaseline = "middle";
    for (const loop of facts.loops) {
      const [left, right] = [xOf(loop.first), xOf(loop.last + 1)];
      if (loop.depth >= depth || right < LEFT || left > LEFT + plotWidth() || right - left < 2) continue;
      const y = TOP + plotHeight() + 2 + loop.depth * BAR;
      c.fillStyle = theme.line;
      c.globalAlpha = loop.trip_count === null ? 0.5 : 1;
      c.fillRect(left + 0.5, y, right - left - 1, BAR - 2);
      c.globalAlpha = 1;
      c.fillStyle = theme.text;
      const [from, to] = [Math.max(left, LEFT), Math.min(right, LEFT + plotWidth())];
      const times = loop.trip_count === null ? "" : `× ${loop.trip_count.toLocaleString("en")}`;
      const words = [`${loop.name} ${times}`.trim(), times].find((t) => t && c.measureText(t).width < to - from - 6);
      if (words) c.fillText(words, (from + to) / 2, y + (BAR - 2) / 2);
    }
    c.restore();
  }

  /** @param {number} i */
  function lines(i) {
    const shared = arena.last[i] !== arena.freed[i] - 1 ? ", then written over" : "";
    return [
      `${formatBytes(arena.bytes[i])}  ${text(i, SHAPE)}`,
      `${text(i, KIND)}; ${text(i, MEMORY) === "temp" ? "a temporary" : "in an output's memory"} at offset ${arena.offset[i].toLocaleString("en")}`,
      `alive from position ${arena.first[i]} to ${arena.last[i]}${shared}`,
      `made by ${text(i, INSTRUCTION)}`,
      ...(text(i, OP_NAME) ? [text(i, OP_NAME)] : []),
      ...(text(i, SCOPE) ? [`in ${text(i, SCOPE)}`] : []),
      ...(text(i, LOOP) ? [`inside ${text(i, LOOP)}`] : []),
      ...(text(i, SOURCE) ? [shortPath(text(i, SOURCE))] : []),
    ];
  }

  /** @param {number} x @param {number} y */
  function at(x, y) {
    if (x < LEFT || x > LEFT + plotWidth() || y < TOP || y > TOP + plotHeight()) return null;
    const [dx, dy] = [(2 * (x1 - x0)) / plotWidth(), (2 * (y1 - y0)) / plotHeight()];
    const buffer = bufferAt(arena, positionAt(x), bytesAt(y), dx, dy);
    return { buffer, position: Math.max(0, Math.min(n - 1, Math.floor(positionAt(x)))) };
  }

  /** @param {number} x @param {number} y */
  function hover(x, y) {
    const found = at(x, y);
    hovered = found ? found.buffer : -1;
    root.dataset.hovered = hovered < 0 ? "" : String(arena.number[hovered]);
    if (!found) tip.hide();
    else if (found.buffer >= 0) tip.show(lines(found.buffer), x, y);
    else {
      const p = found.position;
      const [instruction, name] = [0, 1].map((k) => map.strings[map.schedule[2 * p + k]] ?? "");
      const words = [`position ${p}: ${formatBytes(map.live[p] ?? 0)} of the temporaries alive`, instruction, name];
      tip.show(words.filter(Boolean), x, y);
    }
  }

  /** @param {number | null} value @param {number | null} [at] */
  function choose(value, at = null) {
    model.set("value", value);
    model.set("position", at);
    model.save_changes();
    touch();
  }

  /** Move so that a buffer is in sight. @param {number | null} value */
  function reveal(value) {
    const i = value === null ? -1 : arena.number.indexOf(value);
    if (i < 0) return;
    const [left, right] = [arena.first[i], arena.freed[i]];
    const [low, high] = [arena.low[i], arena.low[i] + arena.bytes[i]];
    const [w, h] = [x1 - x0, y1 - y0];
    const isBesideX = right <= x0 || left >= x1;
    const isBesideY = high <= y0 || low >= y1;
    const x = isBesideX ? (left + right - w) / 2 : x0;
    const y = isBesideY ? (low + high - h) / 2 : y0;
    if (isBesideX || isBesideY) show(x, x + w, y, y + h);
  }

  /** Walk through the buffers from the largest down. @param {number} by */
  function walk(by) {
    const count = arena.bySize.length;
    if (!count) return;
    const rank = arena.bySize.findIndex((i) => arena.number[i] === model.get("value"));
    const i = arena.bySize[(rank + (rank < 0 && by < 0 ? 0 : by) + count) % count];
    const peak = facts.peak_position;
    choose(arena.number[i], arena.first[i] <= peak && peak < arena.freed[i] ? null : arena.first[i]);
    reveal(arena.number[i]);
    tip.show(lines(i), Math.max(LEFT, xOf(arena.first[i])), Math.max(TOP, yOf(arena.low[i] + arena.bytes[i])));
  }

  listen(canvas, {
    pan,
    zoom,
    stride: () => [plotWidth() / 8, plotHeight() / 8],
    all,
    hover,
    leave: tip.hide,
    click: (x, y) => {
      const found = at(x, y);
      if (found) choose(found.buffer < 0 ? null : arena.number[found.buffer], found.position);
    },
    twice: all,
    walk,
    clear: () => choose(null),
    keys: {},
  });

  // Rows are made when they can be seen: the view may stand in a tab that is hidden.
  let isStale = true;
  const shown = new ResizeObserver(() => {
    if (isStale && root.offsetParent) fill();
  });
  shown.observe(root);
  function fill() {
    isStale = !root.offsetParent;
    if (isStale) return;
    const at = position();
    const alive = aliveAt(arena, at);
    const [own, lent] = [true, false].map((isTemp) => {
      const there = alive.filter((i) => (text(i, MEMORY) === "temp") === isTemp);
      return formatBytes(there.reduce((bytes, i) => bytes + arena.bytes[i], 0));
    });
    const when = `position ${at.toLocaleString("en")}${at === facts.peak_position ? " (the peak)" : ""}`;
    const rest = alive.length > MOST_ROWS ? `; the largest ${MOST_ROWS} of them` : "";
    table.fill(
      HEADER,
      alive
        .slice(0, MOST_ROWS)
        .map((i) => [
          arena.number[i],
          arena.bytes[i],
          ...[SHAPE, KIND, MEMORY, INSTRUCTION, SCOPE, SOURCE].map((k) => text(i, k)),
        ]),
      `${alive.length.toLocaleString("en")} tensors alive at ${when}: ${own} among the temporaries, ${lent} in memory of outputs; measured by XLA${rest}`,
    );
    table.mark(model.get("value"));
  }

  function drawLegend() {
    const theme = themeOf(el);
    root.dataset.theme = theme.isDark ? "dark" : "light";
    legend.replaceChildren();
    const colours = /** @type {HTMLSelectElement} */ (element("select", "tb-button"));
    colours.setAttribute("aria-label", "colour by");
    for (const name of ["kind", "scope"]) colours.append(element("option", "", name));
    colours.value = model.get("color_by");
    colours.addEventListener("change", () => {
      model.set("color_by", colours.value);
      model.save_changes();
    });
    legend.append(element("span", "", "colour by"), colours);
    for (const [g, name] of groupNames().entries()) {
      const [colour, mark] = look(theme, name, g);
      const key = element("span", "tb-key");
      const swatch = element("span", `tb-swatch ${mark ? `tb-${mark}` : ""}`);
      swatch.style.backgroundColor = colour;
      key.append(swatch, shortened(name, 30));
      key.dir = "auto";
      legend.append(key);
    }
    legend.append(element("span", "tb-grow"));
    buttons(legend, [
      ["−", "zoom out", () => zoom(1 / 1.6)],
      ["+", "zoom in", () => zoom(1.6)],
      ["peak", "zoom to the peak", toPeak],
      ["all", "show the whole memory", all],
    ]);
  }

  function tell() {
    note.textContent = shortened(model.get("note"), 900);
    note.hidden = !note.textContent;
  }

  drawLegend();
  fill();
  tell();
  const stops = [
    stop,
    () => shown.disconnect(),
    onTheme(el, drawLegend),
    kernelNotice(model, root),
    onChange(model, ["color_by"], () => {
      drawLegend();
      touch();
    }),
    onChange(model, ["position"], () => {
      fill();
      touch();
    }),
    onChange(model, ["marked"], touch),
    onChange(model, ["note"], tell),
    onChange(model, ["value"], () => {
      table.mark(model.get("value"));
      reveal(model.get("value"));
      touch();
    }),
  ];
  return () => {
    for (const end of stops) end();
    root.remove();
  };
}

export default { render: renderMemoryMap };
