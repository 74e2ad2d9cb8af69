// @ts-check
/** The frontier view: live bytes of a plan over its steps, the largest tensors as bands; zoom, pan, hover, choose. */
import { canvasIn } from "../shared/canvas.js";
import { byteAxis, countAxis, headings, labelIn, line, pattern, plate } from "../shared/drawing.js";
import { buttons, element, tooltipIn } from "../shared/elements.js";
import { listen } from "../shared/gestures.js";
import { hideStandIn, kernelNotice, numbers, onChange } from "../shared/model.js";
import { lowerBound } from "../shared/ranges.js";
import { formatBytes, shortPath } from "../shared/text.js";
import { onTheme, themeOf } from "../shared/theme.js";
import { chosenLives, columnsOf, lifeAt, livesOf, stacked } from "./bands.js";

const HEIGHT = 300;
const LEFT = 64;
const RIGHT = 12;
const TOP = 24;
const BOTTOM = 32;
export const FATES = ["forward, freed at once", "saved", "recomputed", "gradient"];
const OPS = [
  "run",
  "save",
  "recompute",
  "backward",
  "free",
  "hold",
  "predicate",
  "copy",
  "broadcast",
  "reshape",
  "reciprocal",
];
/** @type {("transient" | "saved" | "recomputed" | "gradient")[]} */
const FATE_COLOURS = ["transient", "saved", "recomputed", "gradient"];

/** @param {import("../shared/model.js").Model} model */
function readStatic(model) {
  return {
    strings: /** @type {string[]} */ (model.get("_strings")),
    values: numbers(model, "_value_table", Int32Array),
    bytes: numbers(model, "_value_bytes", Float64Array),
    nodes: numbers(model, "_node_table", Int32Array),
  };
}

/** @param {import("../shared/model.js").Model} model */
function readPlan(model) {
  return {
    facts: model.get("_facts"),
    live: numbers(model, "_live_bytes", Float64Array),
    baseline: numbers(model, "_baseline_bytes", Float64Array),
    steps: numbers(model, "_steps", Int32Array),
    ops: numbers(model, "_ops", Uint8Array),
    fate: numbers(model, "_fates", Uint8Array),
    lives: livesOf(numbers(model, "_lives", Int32Array), numbers(model, "_life_bytes", Float64Array)),
  };
}

/** @param {{ model: import("../shared/model.js").Model, el: HTMLElement }} context */
export function renderFrontier({ model, el }) {
  const root = element("div", "tb-view tb-frontier");
  el.append(root);
  hideStandIn(model, root);
  const legend = element("div", "tb-bar");
  root.append(legend);
  const program = readStatic(model);
  let plan = readPlan(model);
  let [x0, x1] = [0, Math.max(1, plan.live.length)];
  /** @type {{ columns: import("./bands.js").Columns, runs: import("./bands.js").Run[], top: Float64Array } | null} */
  let drawn = null;
  let hovered = /** @type {{ x: number, y: number } | null} */ (null);
  let nPaints = 0;
  const label =
    "Live bytes of the plan over time. Arrow keys move, plus and minus zoom, 0 shows all, Y scales to this plan alone, N and P walk through the tensors by size.";
  const { frame, canvas, touch, stop } = canvasIn(root, HEIGHT, label, paint);
  const tip = tooltipIn(frame);

  let isAllShown = true; // up to the peak of the other plan, not of this one alone
  const topBytes = () => {
    const own = Math.max(plan.facts.peak_bytes, Math.min(plan.facts.budget_bytes ?? 0, 1.5 * plan.facts.peak_bytes));
    return Math.max(isAllShown ? plan.facts.top_bytes : own, 1) * 1.12;
  };
  const rescale = () => {
    isAllShown = !isAllShown;
    touch();
  };
  let plotted = 10; // pixels; asked of the page once a picture, which may have to lay itself out to tell
  const plotWidth = () => plotted;
  const plotHeight = () => HEIGHT - TOP - BOTTOM;
  /** @param {number} step */
  const xOf = (step) => LEFT + ((step - x0) / (x1 - x0)) * plotWidth();
  /** @param {number} bytes */
  const yOf = (bytes) => TOP + plotHeight() * (1 - bytes / topBytes());
  /** @param {number} x */
  const stepAt = (x) => x0 + ((x - LEFT) / plotWidth()) * (x1 - x0);

  /** @param {number} a @param {number} b */
  function show(a, b) {
    const n = Math.max(1, plan.live.length);
    const span = Math.min(n, Math.max(Math.min(8, n), b - a));
    x0 = Math.max(0, Math.min(a, n - span));
    x1 = x0 + span;
    touch();
  }
  /** @param {number} factor @param {number} [at] */
  function zoom(factor, at = (x0 + x1) / 2) {
    show(at - (at - x0) * factor, at + (x1 - at) * factor);
  }
  const all = () => show(0, plan.live.length);
  const toPeak = () => {
    const span = Math.max(30, plan.live.length / 20);
    show(plan.facts.peak_step - span / 2, plan.facts.peak_step + span / 2);
  };

  /** @param {CanvasRenderingContext2D} c @param {number} width */
  function paint(c, width) {
    plotted = Math.max(10, width - LEFT - RIGHT);
    const theme = themeOf(el);
    root.dataset.theme = theme.isDark ? "dark" : "light";
    const columns = columnsOf(plan.live, x0, x1, plotWidth());
    const chosen = chosenLives(plan.lives, columns, model.get("detail"), lowerBound);
    const { runs, top } = stacked(plan.lives, chosen, columns.step.length);
    drawn = { columns, runs, top };
    c.font = "11px system-ui, sans-serif";
    c.save();
    c.beginPath();
    c.rect(LEFT, TOP, plotWidth(), plotHeight());
    c.clip();
    paintPhases(c, theme);
    paintRest(c, theme, columns, top);
    paintRuns(c, theme, columns, runs);
    paintBaseline(c, theme);
    paintOutline(c, theme, columns);
    paintLines(c, theme);
    c.restore();
    paintAxes(c, theme, width);
    nPaints += 1;
    root.dataset.paints = String(nPaints);
    root.dataset.serial = String(plan.facts.serial);
    root.dataset.peakBytes = String(plan.facts.peak_bytes);
    root.dataset.bands = String(chosen.length);
    root.dataset.chosen = String(model.get("value") ?? "");
  }

  /** @param {CanvasRenderingContext2D} c @param {import("../shared/theme.js").Theme} theme */
  function paintPhases(c, theme) {
    const border = xOf(plan.facts.n_forward_steps);
    c.globalAlpha = 0.08;
    c.fillStyle = theme.forward;
    c.fillRect(LEFT, TOP, border - LEFT, plotHeight());
    c.fillStyle = theme.backward;
    c.fillRect(border, TOP, xOf(plan.live.length) - border, plotHeight());
    c.globalAlpha = 1;
  }

  /** Another plan's curve, each phase stretched to the width of this plan's. @param {CanvasRenderingContext2D} c @param {import("../shared/theme.js").Theme} theme */
  function paintBaseline(c, theme) {
    const { baseline } = plan;
    if (!baseline.length) return;
    const own = plan.facts.baseline_n_forward_steps;
    const [border, n] = [plan.facts.n_forward_steps, plan.live.length];
    const parts = [
      [0, own, 0, border],
      [own, baseline.length, border, n],
    ];
    const path = new Path2D();
    for (const [a, b, from, to] of parts) {
      if (b <= a || to <= from) continue;
      const scale = (to - from) / (b - a);
      const columns = columnsOf(
        baseline,
        a + (Math.max(x0, from) - from) / scale,
        Math.min(b, a + (x1 - from) / scale),
        plotWidth(),
      );
      for (let i = 0; i < columns.step.length; i += 1) {
        const [left, right] = [xOf(from + (columns.starts[i] - a) * scale), xOf(from + (columns.ends[i] - a) * scale)];
        const y = yOf(baseline[columns.step[i]]);
        if (i === 0) path.moveTo(left, y);
        path.lineTo(left, y);
        path.lineTo(right, y);
      }
    }
    c.strokeStyle = theme.panel;
    c.lineWidth = 3;
    c.globalAlpha = 0.5; // a rim, to be seen on bands that reach higher
    c.stroke(path);
    c.globalAlpha = 1;
    c.strokeStyle = theme.baseline;
    c.lineWidth = 1.2;
    c.setLineDash([4, 3]);
    c.stroke(path);
    c.setLineDash([]);
  }

  /** @param {CanvasRenderingContext2D} c @param {import("../shared/theme.js").Theme} theme @param {import("./bands.js").Columns} columns @param {Float64Array} top */
  function paintRest(c, theme, columns, top) {
    c.fillStyle = theme.rest;
    for (let i = 0; i < columns.step.length; i += 1) {
      const [y, low] = [yOf(plan.live[columns.step[i]]), yOf(top[i])];
      if (low > y) c.fillRect(xOf(columns.starts[i]), y, xOf(columns.ends[i]) - xOf(columns.starts[i]) + 0.4, low - y);
    }
  }

  /** @param {CanvasRenderingContext2D} c @param {import("../shared/theme.js").Theme} theme @param {import("./bands.js").Columns} columns @param {import("./bands.js").Run[]} runs */
  function paintRuns(c, theme, columns, runs) {
    const chosenValue = model.get("value");
    const paths = Array.from({ length: 12 }, () => new Path2D());
    const own = new Path2D();
    const labels = [];
    for (const run of runs) {
      const value = plan.lives.value[run.life];
      const [left, right] = [xOf(columns.starts[run.column]), xOf(columns.ends[run.end - 1])];
      const high = yOf(run.low + plan.lives.bytes[run.life]);
      const tall = yOf(run.low) - high;
      const gap = tall > 3 ? 0.7 : 0;
      paths[3 * plan.fate[value] + (value % 3)].rect(left, high + gap, right - left, tall - gap);
      if (value === chosenValue) own.rect(left, high + 1, right - left, Math.max(1, tall - 2));
      if (tall > 13 && right - left > 46 && labels.length < 80)
        labels.push({ run, left, right, middle: high + tall / 2 });
    }
    paths.forEach((path, i) => {
      const fate = Math.floor(i / 3);
      c.globalAlpha = 0.92 - 0.18 * (i % 3);
      c.fillStyle = theme[FATE_COLOURS[fate]];
      c.fill(path);
      c.globalAlpha = 0.5;
      if (fate === 2) c.fillStyle = pattern(c, "lines", theme.ink);
      else if (fate === 3) c.fillStyle = pattern(c, "dots", theme.ink);
      else return;
      c.fill(path);
    });
    c.globalAlpha = 1;
    for (const { run, left, right, middle } of labels) {
      const from = Math.max(left, LEFT) + 4;
      const room = Math.min(right, LEFT + plotWidth()) - from - 4;
      labelIn(c, theme, bandLabels(run.life), from, middle, room);
    }
    c.strokeStyle = theme.mark;
    c.lineWidth = 2.5;
    c.stroke(own);
  }

  /** @param {CanvasRenderingContext2D} c @param {import("../shared/theme.js").Theme} theme @param {import("./bands.js").Columns} columns */
  function paintOutline(c, theme, columns) {
    const path = new Path2D();
    for (let i = 0; i < columns.step.length; i += 1) {
      const y = yOf(plan.live[columns.step[i]]);
      path.lineTo(xOf(columns.starts[i]), y);
      path.lineTo(xOf(columns.ends[i]), y);
    }
    c.strokeStyle = theme.text;
    c.lineWidth = 1.2;
    c.stroke(path);
  }

  /** @param {CanvasRenderingContext2D} c @param {import("../shared/theme.js").Theme} theme */
  function paintLines(c, theme) {
    const right = LEFT + plotWidth();
    const budget = plan.facts.budget_bytes;
    if (budget !== null) {
      c.strokeStyle = theme.backward;
      c.setLineDash([8, 4]);
      c.lineWidth = 1.5;
      line(c, LEFT, yOf(budget), right, yOf(budget));
      c.setLineDash([]);
      const isPeakRight = plan.facts.peak_step > x0 + 0.6 * (x1 - x0); // its words stand there, too
      const at = /** @type {["left" | "right", number]} */ (isPeakRight ? ["left", LEFT + 4] : ["right", right - 4]);
      const isTight = plotWidth() < 420 && Math.abs(yOf(plan.facts.peak_bytes) - yOf(budget)) < 17;
      plate(c, theme, `budget ${formatBytes(budget)}`, at[1], yOf(budget) - (isTight ? 25 : 9), at[0]);
    }
    const measured = numbers(model, "_measured", Float64Array);
    if (measured.length) {
      c.strokeStyle = theme.mark;
      c.lineWidth = 1.6;
      c.setLineDash([2, 2]);
      c.beginPath();
      for (let i = 0; i < measured.length; i += 2) c.lineTo(xOf(measured[i] * plan.live.length), yOf(measured[i + 1]));
      c.stroke();
      c.setLineDash([]);
    }
    const border = xOf(plan.facts.n_forward_steps);
    c.strokeStyle = theme.faint;
    c.lineWidth = 1;
    c.setLineDash([1, 3]);
    line(c, border, TOP, border, TOP + plotHeight());
    c.setLineDash([]);
    const [x, y] = [xOf(plan.facts.peak_step + 0.5), yOf(plan.facts.peak_bytes)];
    c.fillStyle = theme.mark;
    c.beginPath();
    c.moveTo(x, y);
    c.lineTo(x - 6, y - 10);
    c.lineTo(x + 6, y - 10);
    c.fill();
    const side = x > LEFT + plotWidth() * 0.6 ? "right" : "left";
    plate(c, theme, `peak ${formatBytes(plan.facts.peak_bytes)}`, side === "right" ? x - 10 : x + 10, y - 8, side);
    if (hovered) {
      c.strokeStyle = theme.faint;
      line(c, hovered.x + 0.5, TOP, hovered.x + 0.5, TOP + plotHeight());
    }
  }

  /** @param {CanvasRenderingContext2D} c @param {import("../shared/theme.js").Theme} theme @param {number} width */
  function paintAxes(c, theme, width) {
    byteAxis(c, theme, 0, topBytes(), LEFT, yOf);
    const bottom = TOP + plotHeight();
    countAxis(c, x0, x1, Math.max(2, width / 130), bottom + 4, xOf);
    c.strokeRect(LEFT + 0.5, TOP + 0.5, plotWidth() - 1, plotHeight() - 1);
    c.textBaseline = "alphabetic";
    const of = `${plan.facts.word} of ${plan.live.length.toLocaleString("en")}`;
    headings(c, "live bytes, predicted", [`${of}, recomputation included`, of], 4, width - RIGHT, 12);
    c.textAlign = "center";
    c.font = "italic 11px system-ui, sans-serif";
    const border = plan.facts.n_forward_steps;
    for (const [name, a, b] of /** @type {[string, number, number][]} */ ([
      ["forward", 0, border],
      ["backward", border, plan.live.length],
    ])) {
      const [left, right] = [Math.max(xOf(a), LEFT), Math.min(xOf(b), LEFT + plotWidth())];
      if (right - left > 60) c.fillText(name, (left + right) / 2, TOP + 13);
    }
    c.textAlign = "left";
  }

  /** Primitive, scope and source line of what makes a tensor; an argument is in memory as a copy alone. @param {number} value */
  function makerOf(value) {
    const node = program.values[2 * value];
    if (node < 0) return ["copy of an argument", "", ""];
    return [0, 1, 2].map((k) => program.strings[program.nodes[4 * node + k]]);
  }

  /** @param {number} life */
  function bandLabels(life) {
    const [primitive, scope] = makerOf(plan.lives.value[life]);
    const bytes = formatBytes(plan.lives.bytes[life]);
    return [...(scope ? [`${primitive} ${bytes} · ${scope}`] : []), `${primitive} ${bytes}`, bytes];
  }

  /** @param {number} life */
  function lines(life) {
    const value = plan.lives.value[life];
    const node = program.values[2 * value];
    const [primitive, scope, source] = makerOf(value);
    const [held, whole] = [plan.lives.bytes[life], program.bytes[value]];
    return [
      `${formatBytes(held)}${held === whole ? "" : ` for ${formatBytes(whole)}`}  ${program.strings[program.values[2 * value + 1]]}`,
      `${FATES[plan.fate[value]]}; alive from ${plan.facts.word} ${plan.lives.first[life]} to ${plan.lives.last[life]}`,
      node < 0 ? primitive : `made by ${primitive}, node ${node}`,
      ...(scope ? [`in ${scope}`] : []),
      ...(source ? [shortPath(source)] : []),
    ];
  }

  /** @param {number} x @param {number} y */
  function at(x, y) {
    if (!drawn?.columns.step.length || x < LEFT || x > LEFT + plotWidth() || y < TOP || y > TOP + plotHeight())
      return null;
    const column = Math.max(0, lowerBound(drawn.columns.starts, Math.floor(stepAt(x)) + 1) - 1);
    const bytes = topBytes() * (1 - (y - TOP) / plotHeight());
    return { step: drawn.columns.step[column], life: lifeAt(plan.lives, drawn.runs, column, bytes), bytes, column };
  }

  /** @param {number} x @param {number} y */
  function hover(x, y) {
    const found = at(x, y);
    hovered = found ? { x, y } : null;
    if (!found) tip.hide();
    else if (found.life >= 0) tip.show(lines(found.life), x, y);
    else {
      const { step } = found;
      const node = plan.steps[step];
      const what = node < 0 ? "" : ` ${program.strings[program.nodes[4 * node]]}, node ${node}`;
      const inside = found.bytes <= plan.live[step];
      const rest = formatBytes(plan.live[step] - (drawn?.top[found.column] ?? 0));
      tip.show(
        [
          `${plan.facts.word} ${step}: ${formatBytes(plan.live[step])} alive`,
          `${OPS[plan.ops[step]]}${what}`,
          ...(inside ? [`outputs not yet made, and what is too small for a band: ${rest} together`] : []),
        ],
        x,
        y,
      );
    }
    touch();
  }

  /** @param {number | null} value */
  function choose(value) {
    model.set("value", value);
    model.save_changes();
    touch();
  }

  /** Walk through the tensors that have a band, from the largest down. @param {number} by */
  function walk(by) {
    if (!drawn) return;
    const shown = new Set(drawn.runs.map((run) => plan.lives.value[run.life]));
    const values = [...new Set(Array.from(plan.lives.bySize, (life) => plan.lives.value[life]))].filter((v) =>
      shown.has(v),
    );
    if (!values.length) return;
    const i = values.indexOf(model.get("value"));
    const value = values[(i + by + values.length) % values.length];
    choose(value);
    const life = plan.lives.bySize.find((l) => plan.lives.value[l] === value) ?? 0;
    const run = drawn.runs.find((r) => r.life === life);
    if (run) tip.show(lines(life), Math.max(LEFT, xOf(drawn.columns.starts[run.column])), yOf(run.low));
  }

  listen(canvas, {
    pan: (dx) => {
      const by = (dx / plotWidth()) * (x1 - x0);
      show(x0 - by, x1 - by);
    },
    zoom: (magnification, x) => zoom(1 / magnification, x === undefined ? undefined : stepAt(x)),
    stride: () => [plotWidth() / 8, 0],
    all,
    hover,
    leave: () => {
      hovered = null;
      tip.hide();
      touch();
    },
    click: (x, y) => {
      const found = at(x, y);
      if (found) choose(found.life >= 0 ? plan.lives.value[found.life] : null);
    },
    twice: all,
    walk,
    clear: () => choose(null),
    keys: { y: rescale },
  });

  function drawLegend() {
    const theme = themeOf(el);
    root.dataset.theme = theme.isDark ? "dark" : "light";
    legend.replaceChildren();
    const keys = /** @type {[string, string, string][]} */ ([
      ["saved", theme.saved, ""],
      ["recomputed", theme.recomputed, "repeating-linear-gradient(-45deg, #0009 0 1px, transparent 1px 4px)"],
      ["gradient", theme.gradient, "radial-gradient(circle, #0009 1px, transparent 1.2px) 0 0 / 5px 5px"],
      ["forward, freed at once", theme.transient, ""],
      [plan.facts.word === "kernel" ? "smaller tensors, room for outputs" : "smaller tensors together", theme.rest, ""],
    ]);
    for (const [name, colour, image] of keys) {
      const key = element("span", "tb-key");
      const swatch = element("span", "tb-swatch");
      swatch.style.background = image ? `${image}, ${colour}` : colour;
      if (image.startsWith("radial")) swatch.style.background = `${image}, ${colour}`;
      key.append(swatch, name);
      legend.append(key);
    }
    if (plan.baseline.length)
      legend.append(
        element(
          "span",
          "tb-key",
          `– – ${plan.facts.baseline_name}: peak ${formatBytes(plan.facts.baseline_peak_bytes)}`,
        ),
      );
    if (numbers(model, "_measured", Float64Array).length)
      legend.append(element("span", "tb-key", "··· measured by XLA"));
    legend.append(element("span", "tb-grow"));
    buttons(legend, [
      ["−", "zoom out", () => zoom(1 / 0.6)],
      ["+", "zoom in", () => zoom(0.6)],
      ["↕", "scale to this plan alone, or to save everything", rescale],
      ["peak", "zoom to the peak", toPeak],
      ["all", "show the whole plan", all],
    ]);
  }

  drawLegend();
  const stops = [
    stop,
    onTheme(el, drawLegend),
    kernelNotice(model, root),
    onChange(model, ["_facts", "_measured"], () => {
      const [n, whole] = [plan.live.length, x0 <= 0 && x1 >= plan.live.length];
      Object.assign(program, readStatic(model));
      plan = readPlan(model);
      const scale = whole ? 0 : plan.live.length / Math.max(1, n);
      if (whole) all();
      else show(x0 * scale, x1 * scale);
      drawLegend();
    }),
    onChange(model, ["value", "detail"], touch),
  ];
  return () => {
    for (const end of stops) end();
    root.remove();
  };
}

export default { render: renderFrontier };
