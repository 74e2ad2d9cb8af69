// @ts-check
/** The graph view: boxes of equations that open and close; pan, zoom, hover, choose, search. Positions come from Python. */
import { canvasIn } from "../shared/canvas.js";
import { pattern } from "../shared/drawing.js";
import { buttons, element, tooltipIn } from "../shared/elements.js";
import { listen } from "../shared/gestures.js";
import { hideStandIn, numbers, onChange } from "../shared/model.js";
import { formatBytes } from "../shared/text.js";
import { themeOf } from "../shared/theme.js";

const HEIGHT = 520;
const CORNER = 18;
/** @typedef {{ start: number, end: number, open: boolean, level: number, backward: boolean, lines: string[], more: string[] }} BoxText */

/** What most of a box's bytes are. @param {boolean} isBackward @param {number} saved @param {number} recomputed */
export function fateOf(isBackward, saved, recomputed) {
  if (isBackward) return "gradient";
  if (!saved && !recomputed) return "transient";
  return saved >= recomputed ? "saved" : "recomputed";
}

/** @param {import("../shared/model.js").Model} model */
function readBoxes(model) {
  return {
    boxes: /** @type {BoxText[]} */ (model.get("_boxes")),
    places: numbers(model, "_places", Float32Array),
    edges: numbers(model, "_edges", Int32Array),
    edgeBytes: numbers(model, "_edge_bytes", Float64Array),
  };
}

/** @param {{ model: import("../shared/model.js").Model, el: HTMLElement }} context */
export function renderGraph({ model, el }) {
  const root = element("div", "tb-view tb-graph");
  const bar = element("div", "tb-bar");
  root.append(bar);
  el.append(root);
  hideStandIn(model, root);
  let drawing = readBoxes(model);
  let [scale, dx, dy] = [0, 0, 0];
  let [isWhole, paintedWidth] = [false, 0];
  let nPaints = 0;
  let hit = 0;
  let anchor = /** @type {{ start: number, x: number, y: number } | null} */ (null);
  const label =
    "Equations as boxes, forward down, backward up. Arrow keys move, plus and minus zoom, 0 shows all, N and P walk through the boxes, Enter opens or closes one.";
  const { frame, canvas, touch, stop } = canvasIn(root, HEIGHT, label, paint);
  canvas.style.cursor = "grab";
  const tip = tooltipIn(frame);
  const isLive = () => model.get("_is_live");

  /** @param {number} i */
  const place = (i) => {
    const [x, y, w, h] = drawing.places.subarray(4 * i, 4 * i + 4);
    return { x: x * scale + dx, y: y * scale + dy, w: w * scale, h: h * scale };
  };

  function fit() {
    let [right, bottom] = [1, 1];
    for (let i = 0; i < drawing.boxes.length; i += 1) {
      const [x, y, w, h] = drawing.places.subarray(4 * i, 4 * i + 4);
      right = Math.max(right, x + w);
      bottom = Math.max(bottom, y + h);
    }
    const width = Math.max(50, canvas.clientWidth);
    scale = Math.min(1.4, (width - 24) / right, (HEIGHT - 24) / bottom);
    dx = (width - right * scale) / 2;
    dy = (HEIGHT - bottom * scale) / 2;
    isWhole = true;
    touch();
  }
  /** @param {number} factor @param {number} [x] @param {number} [y] */
  function zoom(factor, x = canvas.clientWidth / 2, y = HEIGHT / 2) {
    const next = Math.max(0.005, Math.min(4, scale * factor));
    dx = x - ((x - dx) * next) / scale;
    dy = y - ((y - dy) * next) / scale;
    scale = next;
    isWhole = false;
    touch();
  }
  /** @param {number} x @param {number} y */
  function pan(x, y) {
    dx += x;
    dy += y;
    isWhole = false;
    touch();
  }
  /** Bring a box into the middle, at a size at which it can be read. @param {number} i */
  function centre(i) {
    if (!scale) fit();
    scale = Math.max(scale, 0.8);
    const [x, y, w, h] = drawing.places.subarray(4 * i, 4 * i + 4);
    dx = canvas.clientWidth / 2 - (x + w / 2) * scale;
    dy = HEIGHT / 2 - (y + h / 2) * scale;
    isWhole = false;
    touch();
  }

  /** @param {CanvasRenderingContext2D} c @param {number} width */
  function paint(c, width) {
    if (!scale || (isWhole && width !== paintedWidth)) fit();
    else dx += (width - paintedWidth) / 2; // the middle stays in the middle
    paintedWidth = width;
    const theme = themeOf(el);
    root.dataset.theme = theme.isDark ? "dark" : "light";
    const boxBytes = numbers(model, "_box_bytes", Float64Array);
    const savedBytes = numbers(model, "_edge_saved_bytes", Float64Array);
    const hits = numbers(model, "_hits", Int32Array);
    c.fillStyle = theme.panel;
    c.fillRect(0, 0, width, HEIGHT);
    c.textBaseline = "middle";
    drawing.boxes.forEach((box, i) => {
      if (box.open) paintFrame(c, theme, box, i);
    });
    paintEdges(c, theme, width, savedBytes);
    const hatch = pattern(c, "lines", theme.isDark ? "#ffffff66" : "#00000055");
    let visible = 0;
    drawing.boxes.forEach((box, i) => {
      const { x, y, w, h } = place(i);
      if (box.open || x > width || y > HEIGHT || x + w < 0 || y + h < 0) return;
      visible += 1;
      c.globalAlpha = hits.length && !hits[i] ? 0.25 : 1;
      paintBox(c, theme, box, i, boxBytes, hits, hatch);
      c.globalAlpha = 1;
    });
    nPaints += 1;
    root.dataset.paints = String(nPaints);
    root.dataset.boxes = String(drawing.boxes.filter((b) => !b.open).length);
    root.dataset.visible = String(visible);
    root.dataset.chosen = String(model.get("value") ?? "");
  }

  /** @param {CanvasRenderingContext2D} c @param {import("../shared/theme.js").Theme} theme @param {BoxText} box @param {number} i */
  function paintFrame(c, theme, box, i) {
    const { x, y, w, h } = place(i);
    const colour = box.backward ? theme.gradient : theme.transient;
    c.globalAlpha = 0.06;
    c.fillStyle = colour;
    c.fillRect(x, y, w, h);
    c.globalAlpha = 0.7;
    c.strokeStyle = colour;
    c.lineWidth = 1;
    c.strokeRect(x, y, w, h);
    c.globalAlpha = 1;
    if (scale < 0.35) return;
    c.font = `bold ${Math.min(12, 12 * scale)}px system-ui, sans-serif`;
    c.fillStyle = theme.faint;
    c.textAlign = "left";
    c.fillText(fitted(c, box.lines[0], w - 30 * scale), x + 8 * scale, y + 11 * scale);
    if (box.level && isLive()) corner(c, theme, x + w, y, "−");
  }

  /** The button that opens or closes a box. @param {CanvasRenderingContext2D} c @param {import("../shared/theme.js").Theme} theme @param {number} right @param {number} y @param {string} sign */
  function corner(c, theme, right, y, sign) {
    const s = CORNER * Math.min(scale, 1);
    c.fillStyle = theme.panel;
    c.strokeStyle = theme.faint;
    c.lineWidth = 1;
    c.fillRect(right - s, y, s, s);
    c.strokeRect(right - s, y, s, s);
    c.fillStyle = theme.text;
    c.textAlign = "center";
    c.font = `bold ${Math.min(13, 13 * scale)}px system-ui, sans-serif`;
    c.fillText(sign, right - s / 2, y + s / 2 + 0.5);
  }

  /** @param {CanvasRenderingContext2D} c @param {import("../shared/theme.js").Theme} theme @param {BoxText} box @param {number} i @param {Float64Array} boxBytes @param {Int32Array} hits @param {CanvasPattern} hatch */
  function paintBox(c, theme, box, i, boxBytes, hits, hatch) {
    const { x, y, w, h } = place(i);
    const [saved, recomputed, other] = boxBytes.subarray(3 * i, 3 * i + 3);
    const fate = /** @type {"saved" | "recomputed" | "gradient" | "transient"} */ (
      fateOf(box.backward, saved, recomputed)
    );
    const node = model.get("value");
    const isChosen = node !== null && node !== undefined && box.start <= node && node < box.end;
    const path = outline(fate, x, y, w, h);
    c.fillStyle = theme.panel;
    c.fill(path);
    const alpha = c.globalAlpha;
    c.globalAlpha = alpha * (theme.isDark ? 0.38 : 0.28);
    c.fillStyle = theme[fate];
    c.fill(path);
    c.globalAlpha = alpha;
    c.strokeStyle = isChosen ? theme.mark : theme[fate];
    c.lineWidth = isChosen ? 3 : 1.5;
    if (fate === "recomputed") c.setLineDash([5, 3]);
    c.stroke(path);
    c.setLineDash([]);
    if (scale < 0.3) return;
    const isGroup = box.end - box.start > 1;
    if (isGroup && saved + recomputed > 0) {
      const whole = saved + recomputed + other;
      const [left, wide, low, tall] = [x + 0.08 * w, 0.84 * w, y + h - 6 * scale, 3 * scale];
      c.fillStyle = theme.saved;
      c.fillRect(left, low, (wide * saved) / whole, tall);
      c.fillStyle = theme.recomputed;
      c.fillRect(left + (wide * saved) / whole, low, (wide * recomputed) / whole, tall);
      c.fillStyle = hatch;
      c.fillRect(left + (wide * saved) / whole, low, (wide * recomputed) / whole, tall);
    }
    c.fillStyle = theme.text;
    c.textAlign = "center";
    const lines =
      hits.length && hits[i] && isGroup
        ? [box.lines[0], `${hits[i]} found`]
        : scale > 0.6
          ? box.lines.slice(0, 3)
          : box.lines.slice(0, 1);
    const [gap, low] = fate === "saved" ? [11 * scale, scale] : [12.5 * scale, -1]; // below the rim of the cylinder
    lines.forEach((line, k) => {
      c.font = `${k ? "" : "bold "}${11 * Math.min(scale, 1.3)}px system-ui, sans-serif`;
      c.fillText(fitted(c, line, w - 26 * scale), x + w / 2, y + h / 2 + (k - (lines.length - 1) / 2) * gap + low);
    });
    if (isGroup && isLive()) corner(c, theme, x + w, y, "+");
  }

  /** @param {CanvasRenderingContext2D} c @param {string} text @param {number} room */
  function fitted(c, text, room) {
    let short = text.length > 60 ? `${text.slice(0, 60)}…` : text;
    while (short.length > 2 && c.measureText(short).width > room) short = `${short.slice(0, -3)}…`;
    return short;
  }

  /** Saved a cylinder, recomputed a hexagon, gradient rounded, the rest a rectangle. @param {string} fate @param {number} x @param {number} y @param {number} w @param {number} h */
  function outline(fate, x, y, w, h) {
    const p = new Path2D();
    if (fate === "gradient") p.roundRect(x, y, w, h, Math.min(14 * scale, h / 2));
    else if (fate === "recomputed") {
      const cut = Math.min(10 * scale, w / 4);
      p.moveTo(x + cut, y);
      for (const [a, b] of [
        [x + w - cut, y],
        [x + w, y + h / 2],
        [x + w - cut, y + h],
        [x + cut, y + h],
        [x, y + h / 2],
      ])
        p.lineTo(a, b);
      p.closePath();
    } else if (fate === "saved") {
      const e = Math.min(3.5 * scale, h / 5);
      p.ellipse(x + w / 2, y + e, w / 2, e, 0, Math.PI, 0);
      p.lineTo(x + w, y + h - e);
      p.ellipse(x + w / 2, y + h - e, w / 2, e, 0, 0, Math.PI);
      p.closePath();
      p.moveTo(x + w, y + e);
      p.ellipse(x + w / 2, y + e, w / 2, e, 0, 0, Math.PI);
    } else p.rect(x, y, w, h);
    return p;
  }

  /** @param {CanvasRenderingContext2D} c @param {import("../shared/theme.js").Theme} theme @param {number} width @param {Float64Array} savedBytes */
  function paintEdges(c, theme, width, savedBytes) {
    const [plain, saved, again] = [new Path2D(), new Path2D(), new Path2D()];
    const labels = [];
    const node = model.get("value");
    const own = new Path2D();
    for (let e = 0; e < drawing.edgeBytes.length; e += 1) {
      const [i, j] = [drawing.edges[3 * e], drawing.edges[3 * e + 1]];
      const [a, b] = [place(i), place(j)];
      if (Math.max(a.x + a.w, b.x + b.w) < 0 || Math.min(a.x, b.x) > width) continue;
      if (Math.max(a.y + a.h, b.y + b.h) < 0 || Math.min(a.y, b.y) > HEIGHT) continue;
      const [tail, head] = [drawing.boxes[i], drawing.boxes[j]];
      const isAcross = tail.backward !== head.backward;
      const paths = !isAcross
        ? [plain]
        : savedBytes[e] >= drawing.edgeBytes[e]
          ? [saved]
          : savedBytes[e]
            ? [saved, again]
            : [again];
      const ends = isAcross ? across(a, b) : along(a, b, tail.backward);
      const isOwn =
        node !== null && ((tail.start <= node && node < tail.end) || (head.start <= node && node < head.end));
      for (const p of isOwn ? [...paths, own] : paths) {
        const by = p === again && paths.length > 1 ? 4 : 0; // beside the saved part
        p.moveTo(ends[0], ends[1] + by);
        p.bezierCurveTo(ends[2], ends[3] + by, ends[4], ends[5] + by, ends[6], ends[7] + by);
      }
      if (scale > 0.75 && labels.length < 200) labels.push({ e, x: middle(ends, 0), y: middle(ends, 1) });
    }
    for (const [path, colour, dash, wide] of /** @type {[Path2D, string, number[], number][]} */ ([
      [plain, theme.faint, [], 0.8],
      [again, theme.recomputed, [5, 4], 1.2],
      [saved, theme.saved, [], 1.6],
      [own, theme.mark, [], 2],
    ])) {
      c.strokeStyle = colour;
      c.lineWidth = wide;
      c.setLineDash(dash);
      c.stroke(path);
    }
    c.setLineDash([]);
    c.font = "9px system-ui, sans-serif";
    c.textAlign = "left";
    for (const { e, x, y } of labels) {
      const n = drawing.edges[3 * e + 2];
      const text = `${formatBytes(drawing.edgeBytes[e])}${n > 1 ? ` in ${n}` : ""}`;
      c.fillStyle = theme.panel;
      c.globalAlpha = 0.92;
      c.fillRect(x + 1, y - 6, c.measureText(text).width + 4, 12);
      c.globalAlpha = 1;
      c.fillStyle = theme.faint;
      c.fillText(text, x + 3, y);
    }
  }

  /** One coordinate of the middle of a Bézier curve. @param {number[]} ends @param {number} k */
  const middle = (ends, k) => (ends[k] + 3 * ends[2 + k] + 3 * ends[4 + k] + ends[6 + k]) / 8;

  /** @typedef {{ x: number, y: number, w: number, h: number }} Place */
  /** @param {Place} a @param {Place} b */
  function across(a, b) {
    const [x0, y0, x1, y1] = [a.x + a.w, a.y + a.h / 2, b.x, b.y + b.h / 2];
    return [x0, y0, x0 + 60 * scale, y0, x1 - 60 * scale, y1, x1, y1];
  }
  /** @param {Place} a @param {Place} b @param {boolean} isUp */
  function along(a, b, isUp) {
    const [x0, y0, x1, y1] = [a.x + a.w / 2, isUp ? a.y : a.y + a.h, b.x + b.w / 2, isUp ? b.y + b.h : b.y];
    // An edge that passes other boxes leaves the column in a bow.
    const bow =
      Math.abs(y1 - y0) > 60 * scale ? (isUp ? 1 : -1) * Math.min(70, 18 + Math.abs(y1 - y0) / scale / 30) * scale : 0;
    const bend = (y1 - y0) / 3;
    return [x0, y0, x0 + bow, y0 + bend, x1 + bow, y1 - bend, x1, y1];
  }

  /** The innermost box at a point, and whether the point is on its button. @param {number} x @param {number} y */
  function at(x, y) {
    for (let i = drawing.boxes.length - 1; i >= 0; i -= 1) {
      const p = place(i);
      if (x < p.x || y < p.y || x > p.x + p.w || y > p.y + p.h) continue;
      const s = CORNER * Math.min(scale, 1);
      const box = drawing.boxes[i];
      const canToggle = isLive() && (box.open ? box.level > 0 : box.end - box.start > 1);
      return { i, box, onButton: canToggle && x > p.x + p.w - s && y < p.y + s };
    }
    return null;
  }

  /** @param {number} i */
  function toggle(i) {
    const box = drawing.boxes[i];
    if (!isLive() || (box.open ? !box.level : box.end - box.start < 2)) return;
    const { x, y } = place(i);
    anchor = { start: box.start, x, y };
    const opened = /** @type {number[][]} */ (model.get("_opened"));
    const same = (/** @type {number[]} */ pair) => pair[0] === box.start && pair[1] === box.end;
    model.set("_opened", box.open ? opened.filter((pair) => !same(pair)) : [...opened, [box.start, box.end]]);
    model.save_changes();
  }

  /** @param {number | null} node */
  function choose(node) {
    model.set("value", node);
    model.save_changes();
    touch();
  }

  /** Walk through the closed boxes, or those that the search found. @param {number} by */
  function walk(by) {
    const hits = numbers(model, "_hits", Int32Array);
    const closed = drawing.boxes.flatMap((b, i) => (b.open || (hits.length && !hits[i]) ? [] : [i]));
    if (!closed.length) return;
    closed.sort((a, b) => drawing.boxes[a].start - drawing.boxes[b].start);
    hit = (hit + by + closed.length) % closed.length;
    const i = closed[hit];
    centre(i);
    choose(drawing.boxes[i].start);
    const p = place(i);
    tip.show([...drawing.boxes[i].lines, ...drawing.boxes[i].more], p.x + p.w, p.y);
  }

  /** @param {number} x @param {number} y */
  function hover(x, y) {
    const found = at(x, y);
    if (!found || (found.box.open && !found.box.level)) return void tip.hide();
    const [saved, recomputed] = numbers(model, "_box_bytes", Float64Array).subarray(3 * found.i, 3 * found.i + 2);
    const fate = found.box.backward ? [] : [`saved ${formatBytes(saved)}, recomputed ${formatBytes(recomputed)}`];
    tip.show([...found.box.lines, ...fate, ...found.box.more], x, y);
  }

  listen(canvas, {
    pan,
    zoom,
    stride: () => [60, 60],
    all: fit,
    hover,
    leave: tip.hide,
    click: (x, y) => {
      const found = at(x, y);
      if (found?.onButton) toggle(found.i);
      else if (found && !found.box.open) choose(found.box.start);
    },
    twice: (x, y) => {
      const found = at(x, y);
      if (found && !found.onButton) toggle(found.i);
    },
    walk,
    clear: () => choose(null),
    keys: {
      Enter: () => {
        const node = model.get("value");
        const i = drawing.boxes.findLastIndex(
          (b) => node !== null && b.start <= node && node < b.end && (b.open || b.end - b.start > 1),
        );
        if (i >= 0) toggle(i);
      },
    },
  });

  const caption = element("span");
  const found = element("span");
  function drawBar() {
    caption.textContent = model.get("_caption");
    const hits = numbers(model, "_hits", Int32Array);
    const n = drawing.boxes.reduce((sum, b, i) => sum + (b.open ? 0 : (hits[i] ?? 0)), 0);
    found.textContent = hits.length ? `${n.toLocaleString("en")} found` : "";
  }
  if (isLive()) {
    const search = /** @type {HTMLInputElement} */ (element("input", "tb-search"));
    search.type = "search";
    search.placeholder = "primitive, scope or source line";
    search.setAttribute("aria-label", "search primitives, scopes and source lines");
    search.value = model.get("query");
    search.addEventListener("input", () => {
      model.set("query", search.value);
      model.save_changes();
    });
    search.addEventListener("keydown", (e) => {
      e.stopPropagation();
      if (e.key === "Enter") walk(1);
    });
    const group = /** @type {HTMLSelectElement} */ (element("select", "tb-button"));
    group.setAttribute("aria-label", "collapse by");
    for (const name of ["scope", "block"]) group.append(element("option", "", name));
    group.value = model.get("group_by");
    group.addEventListener("change", () => {
      scale = 0;
      model.set("group_by", group.value);
      model.save_changes();
    });
    bar.append(search, found, element("span", "", "collapse by"), group);
  }
  bar.append(caption);
  for (const [name, mark] of [
    ["saved", "⛁"],
    ["recomputed", "⬡"],
    ["gradient", "▢"],
    ["neither", "■"],
  ]) {
    const key = element("span", "tb-key tb-graph-key", `${mark} ${name}`);
    key.dataset.fate = name;
    bar.append(key);
  }
  bar.append(element("span", "tb-grow"));
  buttons(bar, [
    ["−", "zoom out", () => zoom(1 / 1.4)],
    ["+", "zoom in", () => zoom(1.4)],
    ["all", "show the whole graph", fit],
  ]);
  drawBar();

  const stops = [
    stop,
    onChange(model, ["_places", "_boxes"], () => {
      drawing = readBoxes(model);
      const i = anchor ? drawing.boxes.findLastIndex((b) => b.start === anchor?.start) : -1;
      if (anchor && i >= 0) {
        const [x, y] = drawing.places.subarray(4 * i, 4 * i + 2);
        dx = anchor.x - x * scale;
        dy = anchor.y - y * scale;
      }
      anchor = null;
      drawBar();
      touch();
    }),
    onChange(model, ["_hits", "_caption"], drawBar),
    onChange(model, ["_box_bytes", "_edge_saved_bytes", "_hits"], touch),
    onChange(model, ["value"], () => {
      const node = model.get("value");
      const i = drawing.boxes.findIndex((b) => !b.open && node !== null && b.start <= node && node < b.end);
      if (i >= 0) {
        const p = place(i);
        const isInSight = p.x >= 0 && p.y >= 0 && p.x + p.w <= canvas.clientWidth && p.y + p.h <= HEIGHT;
        if (!isInSight || scale < 0.4) centre(i);
      }
      touch();
    }),
  ];
  return () => {
    for (const end of stops) end();
    root.remove();
  };
}

export default { render: renderGraph };
