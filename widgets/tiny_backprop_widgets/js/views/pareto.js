// @ts-check
/** The trade-off: peak bytes to the right, what recomputation costs upwards; every point can be chosen. */
import { element, tooltipIn } from "../shared/elements.js";
import { hideStandIn, onChange } from "../shared/model.js";
import { ticks } from "../shared/ranges.js";
import { formatBytes } from "../shared/text.js";
import { onTheme, themeOf } from "../shared/theme.js";

const HEIGHT = 280;
const GAP = 3; // between words, in pixels
const MARGIN = { left: 58, right: 14, top: 14, bottom: 20 };
/** Where words may stand beside their point, the best place first: where a falling curve is not. */
const SIDES = [
  [12, -7],
  [-13, 16],
  [12, -21],
  [-13, 30],
  [12, -35],
  [-13, 44],
  [12, -49],
  [-13, 58],
  [13, 16],
  [-12, -7],
  [13, 30],
  [-12, -21],
];
const SVG = "http://www.w3.org/2000/svg";

/**
 * @param {string} tag
 * @param {Record<string, string | number>} attributes
 */
function shape(tag, attributes, text = "") {
  const el = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) el.setAttribute(name, String(value));
  if (text) el.textContent = text;
  return el;
}

/** @param {{ peak_bytes: number, percent: number }} plan */
function told({ peak_bytes, percent }) {
  return `peak ${formatBytes(peak_bytes)}, recompute +${percent.toFixed(1)}%`;
}

/** How many elements a box touches. @param {DOMRect} box @param {Element[]} elements */
function countCovered(box, elements) {
  return elements.filter((e) => {
    const its = e.getBoundingClientRect();
    return its.left < box.right + GAP && its.right > box.left - GAP && its.top < box.bottom && its.bottom > box.top;
  }).length;
}

/**
 * Whether a box touches a line of horizontal and vertical pieces.
 * @param {DOMRect} box @param {[number, number][]} corners
 */
function isCrossed(box, corners) {
  return corners.slice(1).some(([x1, y1], i) => {
    const [x0, y0] = corners[i];
    const [left, right, top, bottom] = [Math.min(x0, x1), Math.max(x0, x1), Math.min(y0, y1), Math.max(y0, y1)];
    return left < box.right + GAP && right > box.left - GAP && top < box.bottom && bottom > box.top;
  });
}

/** @param {{ model: import("../shared/model.js").Model, el: HTMLElement }} context */
export function renderPareto({ model, el }) {
  const root = element("div", "tb-view tb-pareto");
  const frame = element("div", "tb-frame");
  const words = element("div", "tb-bar tb-apart");
  root.append(frame, words);
  el.append(root);
  hideStandIn(model, root);
  const tip = tooltipIn(frame);
  let drawing = /** @type {SVGElement | null} */ (null);

  function draw() {
    const theme = themeOf(el);
    root.dataset.theme = theme.isDark ? "dark" : "light";
    const width = frame.clientWidth;
    if (!width) return;
    const { points, references, bound_bytes, bound_name, knee, unit, current } = model.get("_curve");
    const everyone = [...points, ...references, ...(current ? [current] : [])];
    const most = Math.max(1, bound_bytes, ...everyone.map((p) => p.peak_bytes)) * 1.06;
    const top = Math.max(1e-6, ...everyone.map((p) => p.percent)) * 1.12;
    const [w, h] = [width - MARGIN.left - MARGIN.right, HEIGHT - MARGIN.top - MARGIN.bottom];
    /** @param {number} bytes */
    const x = (bytes) => MARGIN.left + (w * bytes) / most;
    /** @param {number} percent */
    const y = (percent) => MARGIN.top + h * (1 - (percent + 0.03 * top) / (1.03 * top));
    const svg = shape("svg", { width, height: HEIGHT, viewBox: `0 0 ${width} ${HEIGHT}`, role: "group" });
    svg.setAttribute(
      "aria-label",
      "Peak bytes against recompute cost of plans, predicted. Tab walks through the points, Enter chooses one.",
    );
    const font = { "font-size": 11, fill: theme.faint };
    for (const bytes of ticks(0, most, Math.max(2, w / 110), 1024)) {
      svg.append(
        shape("line", {
          x1: x(bytes),
          x2: x(bytes),
          y1: MARGIN.top,
          y2: MARGIN.top + h,
          stroke: theme.line,
          "stroke-width": 0.5,
        }),
      );
      svg.append(
        shape("text", { ...font, x: x(bytes), y: MARGIN.top + h + 14, "text-anchor": "middle" }, formatBytes(bytes)),
      );
    }
    for (const percent of ticks(0, top, 5)) {
      svg.append(
        shape("line", {
          x1: MARGIN.left,
          x2: MARGIN.left + w,
          y1: y(percent),
          y2: y(percent),
          stroke: theme.line,
          "stroke-width": 0.5,
        }),
      );
      svg.append(
        shape(
          "text",
          { ...font, x: MARGIN.left - 6, y: y(percent) + 4, "text-anchor": "end" },
          `+${Number(percent.toPrecision(3))}%`,
        ),
      );
    }
    words.replaceChildren(
      element("span", "", `dotted: ${bound_name}, ${formatBytes(bound_bytes)}; no plan needs less`),
      element("span", "", `peak bytes, predicted; upwards: recompute ${unit}, predicted`),
    );
    svg.append(
      shape("line", {
        x1: x(bound_bytes),
        x2: x(bound_bytes),
        y1: MARGIN.top,
        y2: MARGIN.top + h,
        stroke: theme.text,
        "stroke-dasharray": "2 3",
      }),
    );
    /** @type {[number, number][]} */
    const corners = points.flatMap((/** @type {any} */ p, /** @type {number} */ i) => {
      const before = points[Math.max(i - 1, 0)];
      return [
        [x(p.peak_bytes), y(before.percent)],
        [x(p.peak_bytes), y(p.percent)],
      ];
    });
    const line = { fill: "none", stroke: theme.forward, "stroke-width": 1.5, class: "tb-curve" };
    svg.append(shape("path", { d: `M${corners.join("L")}`, ...line }));
    let free = Number.POSITIVE_INFINITY; // where the label above may reach down to
    for (const p of [...references].sort((one, other) => one.percent - other.percent)) {
      const [a, b] = [x(p.peak_bytes), y(p.percent)];
      const cross = shape("path", {
        d: `M${a - 5},${b - 5}l10,10m0,-10l-10,10`,
        stroke: theme.faint,
        "stroke-width": 2.5,
        fill: "none",
        tabindex: 0,
        role: "img",
        "aria-label": `jax.checkpoint, ${p.name}: ${told(p)}`,
      });
      const low = Math.min(b + 4, free);
      free = low - 13;
      svg.append(cross, shape("text", { ...font, x: a - 9, y: low, "text-anchor": "end" }, p.name));
      hoverable(cross, p, `jax.checkpoint, ${p.name}`, a, b);
    }
    /** @type {[SVGElement, number, number][]} words, and the point that they belong to */
    const labels = [];
    for (const [i, p] of points.entries()) {
      const isKnee = i === knee;
      const isChosen = i === model.get("value");
      const [a, b] = [x(p.peak_bytes), y(p.percent)];
      const r = isKnee ? 7 : 4;
      const look = {
        fill: isKnee ? theme.backward : theme.forward,
        stroke: isChosen ? theme.mark : theme.panel,
        "stroke-width": isChosen ? 3 : 1,
      };
      const point = isKnee
        ? shape("path", { d: `M${a},${b - r}L${a + r},${b}L${a},${b + r}L${a - r},${b}Z`, ...look })
        : shape("circle", { cx: a, cy: b, r, ...look });
      point.setAttribute("class", "tb-point");
      point.setAttribute("tabindex", "0");
      point.setAttribute("role", "button");
      point.setAttribute("aria-pressed", String(isChosen));
      point.setAttribute("data-point", String(i));
      point.setAttribute("aria-label", `plan with ${told(p)}${isKnee ? ", the knee" : ""}`);
      point.addEventListener("click", () => choose(i));
      point.addEventListener("keydown", (e) => {
        const key = /** @type {KeyboardEvent} */ (e).key;
        const step = key === "ArrowRight" ? -1 : key === "ArrowLeft" ? 1 : 0;
        const next = step ? i + step : key === "Enter" || key === " " ? i : -1;
        if (next < 0 || next >= points.length) return;
        e.preventDefault();
        e.stopPropagation();
        choose(next);
      });
      hoverable(point, p, isKnee ? "knee" : "plan", a, b);
      svg.append(point);
      if (isKnee) {
        const words = `knee: ${formatBytes(p.peak_bytes)}, +${p.percent.toFixed(1)}%`;
        labels.push([
          shape("text", { ...font, fill: theme.text, "font-weight": "bold", class: "tb-knee" }, words),
          a,
          b,
        ]);
      }
    }
    if (current) {
      const [a, b] = [x(current.peak_bytes), y(current.percent)];
      svg.append(
        shape("circle", {
          cx: a,
          cy: b,
          r: 9,
          fill: "none",
          stroke: theme.mark,
          "stroke-width": 2,
          class: "tb-current",
        }),
      );
      labels.push([shape("text", { ...font, fill: theme.text, class: "tb-this" }, "this plan"), a, b]);
    }
    const focused = document.activeElement?.getAttribute("data-point");
    const hadFocus = drawing?.contains(document.activeElement);
    if (drawing) drawing.remove();
    drawing = svg;
    frame.prepend(svg);
    for (const [words, a, b] of labels) label(svg, words, a, b, corners);
    if (hadFocus && focused)
      /** @type {SVGElement | null} */ (svg.querySelector(`[data-point="${model.get("value") ?? focused}"]`))?.focus();
  }

  /**
   * Put words beside a point, inside the plot, where they cover no other words and, if there is such a place, neither
   * another point nor the curve.
   * @param {SVGElement} svg @param {SVGElement} words @param {number} a @param {number} b
   * @param {[number, number][]} corners those of the curve
   */
  function label(svg, words, a, b, corners) {
    const others = [...svg.querySelectorAll("text")];
    const marks = [...svg.querySelectorAll(".tb-point")];
    svg.append(words);
    const wide = words.getBoundingClientRect().width;
    const { left, top, width } = svg.getBoundingClientRect();
    const places = SIDES.map(([dx, dy]) => {
      const x = Math.max(MARGIN.left + GAP, Math.min(a + dx - (dx < 0 ? wide : 0), width - GAP - wide));
      put(words, x, b + dy);
      const box = words.getBoundingClientRect();
      const isOutside = b + dy < 11 || b + dy > HEIGHT - MARGIN.bottom;
      const isOnCurve = isCrossed(new DOMRect(box.x - left, box.y - top, box.width, box.height), corners);
      const covered = 100 * countCovered(box, others) + countCovered(box, marks) + Number(isOnCurve);
      return { x, y: b + dy, cost: 1000 * Number(isOutside) + covered };
    });
    const { x, y } = places.reduce((best, place) => (place.cost < best.cost ? place : best));
    put(words, x, y);
  }

  /** @param {SVGElement} words @param {number} x @param {number} y */
  function put(words, x, y) {
    words.setAttribute("x", String(x));
    words.setAttribute("y", String(y));
  }

  /** @param {Element} el @param {any} p @param {string} name @param {number} a @param {number} b */
  function hoverable(el, p, name, a, b) {
    const show = () =>
      tip.show(
        [
          name,
          `peak ${formatBytes(p.peak_bytes)}`,
          `recompute +${p.percent.toFixed(2)}%`,
          ...(p.label ? [p.label] : []),
        ],
        a,
        b,
      );
    el.addEventListener("pointerenter", show);
    el.addEventListener("focus", show);
    el.addEventListener("pointerleave", tip.hide);
    el.addEventListener("blur", tip.hide);
  }

  /** @param {number} i */
  function choose(i) {
    model.set("value", i);
    model.save_changes();
    draw();
  }

  const resized = new ResizeObserver(draw);
  resized.observe(frame);
  const stops = [onTheme(el, draw), onChange(model, ["_curve", "value"], draw)];
  return () => {
    resized.disconnect();
    for (const end of stops) end();
    root.remove();
  };
}

export default { render: renderPareto };
