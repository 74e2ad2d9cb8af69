// @ts-check
/**
 * What the views share: numbers for people, binary traits, colours of the theme, a canvas that follows its element.
 *
 * Texts of the user's program reach the page through `textContent` and canvas text alone, never as HTML.
 *
 * @typedef {{ get(name: string): any, set(name: string, value: any): void, save_changes(): void,
 *             on(event: string, callback: () => void): void, off(event: string, callback: () => void): void }} Model
 * @typedef {{ text: string, faint: string, line: string, panel: string, forward: string, backward: string,
 *             saved: string, recomputed: string, gradient: string, transient: string, rest: string, baseline: string,
 *             ink: string, mark: string, isDark: boolean }} Theme
 */

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
const MOST_LETTERS = 240;

/**
 * Bytes with an IEC unit and three significant digits, as Python's `format_bytes` writes them.
 * @param {number} n
 */
export function formatBytes(n) {
  let i = 0;
  while (Math.abs(n) >= 1024 && i < UNITS.length - 1) {
    n /= 1024;
    i += 1;
  }
  const digits = i === 0 || Math.abs(n) >= 999.5 ? n.toFixed(0) : String(Number(n.toPrecision(3)));
  return `${digits} ${UNITS[i]}`;
}

/**
 * A long text shortened for a tooltip; control characters become spaces.
 * @param {string} text
 */
export function shortened(text, most = MOST_LETTERS) {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: these are what is taken out
  const clean = text.replace(/[\u0000-\u001f\u007f\u202a-\u202e\u2066-\u2069]+/g, " ");
  const letters = Array.from(clean.slice(0, 2 * most + 2));
  return letters.length > most ? `${letters.slice(0, most - 1).join("")}…` : letters.join("");
}

/**
 * A source line with the last two folders of its path.
 * @param {string} source
 */
export function shortPath(source) {
  const parts = source.split("/");
  return parts.length > 3 ? `…/${parts.slice(-2).join("/")}` : source;
}

/**
 * A binary trait as a typed array of its own, whatever the alignment of the message it came in.
 * @template T
 * @param {Model} model
 * @param {string} name
 * @param {new (buffer: ArrayBuffer) => T} Kind
 * @returns {T}
 */
export function numbers(model, name, Kind) {
  const data = model.get(name);
  if (!data) return new Kind(new ArrayBuffer(0));
  const start = data.byteOffset ?? 0;
  const buffer = data.buffer ?? data;
  return new Kind(buffer.slice(start, start + data.byteLength));
}

/**
 * The index of the first entry of a sorted array that is at least `x`.
 * @param {ArrayLike<number>} sorted
 * @param {number} x
 */
export function lowerBound(sorted, x) {
  let low = 0;
  let high = sorted.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (sorted[middle] < x) low = middle + 1;
    else high = middle;
  }
  return low;
}

/**
 * Round steps between two ends, about `n` of them; `base` 1024 for bytes.
 * @param {number} low
 * @param {number} high
 * @param {number} n
 */
export function ticks(low, high, n, base = 10) {
  const span = high - low;
  if (!(span > 0)) return [];
  const scale = base === 1024 ? 1024 ** Math.max(0, Math.floor(Math.log(high) / Math.log(1024))) : 1;
  const raw = span / n / scale;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = ([1, 2, 5, 10].find((k) => k * power >= raw) ?? 10) * power * scale;
  const out = [];
  for (let i = Math.ceil(low / step); i * step <= high; i += 1) out.push(i * step);
  return out;
}

/** @type {Theme} */
const LIGHT = {
  text: "#1a1a1a",
  faint: "#666666",
  line: "#d4d4d4",
  panel: "#ffffff",
  forward: "#0072B2",
  backward: "#D55E00",
  saved: "#009E73",
  recomputed: "#CC79A7",
  gradient: "#E69F00",
  transient: "#56B4E9",
  rest: "#c9ced6",
  baseline: "#9a9a9a",
  ink: "#10131a",
  mark: "#000000",
  isDark: false,
};
/** @type {Theme} */
const DARK = {
  text: "#e8e8e8",
  faint: "#a6a6a6",
  line: "#474747",
  panel: "#1e1e1e",
  forward: "#56B4E9",
  backward: "#ff8f3f",
  saved: "#1fb98c",
  recomputed: "#d68ab4",
  gradient: "#e6a52e",
  transient: "#4a9fd4",
  rest: "#565b64",
  baseline: "#8a8a8a",
  ink: "#0b0d11",
  mark: "#ffffff",
  isDark: true,
};

/**
 * Whether the ground of an element is dark: JupyterLab says so, else the nearest background does, for VS Code puts
 * widgets on white in dark themes, too; where there is none, what VS Code or Colab says of the page.
 * @param {Element} el
 */
export function isDark(el) {
  const body = document.body;
  if (body.dataset.jpThemeLight) return body.dataset.jpThemeLight === "false";
  for (let at = /** @type {Element | null} */ (el); at; at = at.parentElement) {
    const rgb = (getComputedStyle(at).backgroundColor.match(/[\d.]+/g) ?? []).map(Number);
    if (rgb.length >= 3 && (rgb.length === 3 || rgb[3] > 0.5)) return rgb[0] + rgb[1] + rgb[2] < 384;
  }
  const says = (/** @type {string} */ name) => body.classList.contains(`vscode-${name}`);
  if (says("light") || says("high-contrast-light")) return false;
  if (says("dark") || says("high-contrast") || document.documentElement.getAttribute("theme") === "dark") return true;
  return matchMedia("(prefers-color-scheme: dark)").matches;
}

/**
 * The colours for an element, Okabe and Ito's, a little brighter on dark ground.
 * @param {Element} el
 */
export function themeOf(el) {
  return isDark(el) ? DARK : LIGHT;
}

/**
 * Call back when the ground of an element turns light or dark.
 * @param {HTMLElement} el
 * @param {() => void} callback
 * @returns {() => void} stops watching
 */
export function onTheme(el, callback) {
  const observer = new MutationObserver(callback);
  const options = {
    attributes: true,
    attributeFilter: ["data-jp-theme-light", "data-jp-theme-name", "class", "theme"],
  };
  observer.observe(document.body, options);
  observer.observe(document.documentElement, options);
  const media = matchMedia("(prefers-color-scheme: dark)");
  media.addEventListener("change", callback);
  // Front-ends draw a view first and then put it into the page, where its ground is.
  const placed = new ResizeObserver(([{ contentRect }]) => {
    if (!contentRect.width) return;
    placed.disconnect();
    callback();
  });
  if (!el.isConnected) placed.observe(el);
  return () => {
    observer.disconnect();
    placed.disconnect();
    media.removeEventListener("change", callback);
  };
}

/**
 * A new element with text, never HTML, inside.
 * @param {string} tag
 * @param {string} className
 * @param {string} text
 * @returns {HTMLElement}
 */
export function element(tag, className = "", text = "") {
  const el = document.createElement(tag);
  if (className) el.className = className;
  if (text) el.textContent = text;
  return el;
}

/**
 * A canvas that fills the width of its element, and calls `paint` at most once a frame after `touch()`.
 * @param {HTMLElement} parent
 * @param {number} height
 * @param {string} label
 * @param {(context: CanvasRenderingContext2D, width: number, height: number) => void} paint
 */
export function canvasIn(parent, height, label, paint) {
  const frame = element("div", "tb-frame");
  const canvas = document.createElement("canvas");
  canvas.tabIndex = 0;
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", label);
  canvas.style.height = `${height}px`;
  frame.append(canvas);
  parent.append(frame);
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  let request = 0;
  let tries = 0;
  let timer = 0;
  const draw = () => {
    request = 0;
    const width = canvas.clientWidth;
    const tall = canvas.clientHeight;
    if (!width || !tall) {
      // JupyterLab takes the notebook out of the page for a moment when it changes its theme.
      tries -= 1;
      clearTimeout(timer);
      if (tries > 0) timer = setTimeout(again, 200);
      return;
    }
    const ratio = devicePixelRatio || 1;
    const [w, h] = [Math.round(width * ratio), Math.round(tall * ratio)];
    if (canvas.width !== w || canvas.height !== h) {
      canvas.width = w;
      canvas.height = h;
    }
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, tall);
    paint(context, width, tall);
  };
  const again = () => {
    request ||= requestAnimationFrame(draw);
  };
  const touch = () => {
    tries = 5;
    again();
  };
  const resized = new ResizeObserver(touch);
  resized.observe(canvas);
  const stopTheme = onTheme(parent, touch);
  const listening = new AbortController(); // functions of this canvas alone: one that stops leaves the others theirs
  const { signal } = listening;
  addEventListener("keydown", (e) => keepKey(e), { capture: true, signal });
  addEventListener("focusin", (e) => nameControl(e), { signal });
  const stop = () => {
    listening.abort();
    resized.disconnect();
    stopTheme();
    cancelAnimationFrame(request);
    clearTimeout(timer);
  };
  return { frame, canvas, touch, stop };
}

/**
 * Leave a plain key to the view or the slider that has the focus. Notebook 7 looks for shortcuts of its own before
 * they see the key, and has some for arrow keys, Enter and 0.
 * @param {KeyboardEvent} e
 */
function keepKey(e) {
  const at = /** @type {Element | null} */ (e.target);
  const own = at?.closest?.(".tb-view [tabindex], .tiny-backprop-explorer .noUi-handle");
  if (!own || e.ctrlKey || e.metaKey || e.altKey || e.shiftKey) return;
  own.setAttribute("data-lm-suppress-shortcuts", "true");
  setTimeout(() => own.removeAttribute("data-lm-suppress-shortcuts"));
}

/**
 * Name a slider or a field by what stands beside it: ipywidgets names no handle, and hides the empty label of a field.
 * @param {FocusEvent} e
 */
function nameControl(e) {
  const at = /** @type {HTMLElement | null} */ (e.target);
  if (!at?.matches?.(".tiny-backprop-explorer :is(.noUi-handle, .widget-readout, input)") || at.ariaLabel) return;
  const label = /** @type {HTMLElement | null} */ (at.closest(".widget-inline-hbox")?.querySelector(".widget-label"));
  const name = label?.textContent || at.title || label?.title;
  if (name) at.setAttribute("aria-label", name);
}

/**
 * A tooltip inside a frame: lines of text beside the pointer, the first of them strong.
 * @param {HTMLElement} frame
 */
export function tooltipIn(frame) {
  const tip = element("div", "tb-tip");
  tip.setAttribute("role", "status");
  tip.hidden = true;
  frame.append(tip);
  /** @param {string[]} lines @param {number} x @param {number} y */
  const show = (lines, x, y) => {
    tip.replaceChildren(
      ...lines.map((line, i) => {
        const row = element(i ? "div" : "b", "", shortened(line));
        row.dir = "auto";
        return row;
      }),
    );
    tip.hidden = false;
    const [width, height] = [tip.offsetWidth, tip.offsetHeight];
    const left = x + 14 + width > frame.clientWidth ? Math.max(0, x - width - 10) : x + 14;
    tip.style.left = `${left}px`;
    tip.style.top = `${Math.max(0, Math.min(y + 12, frame.clientHeight - height))}px`;
  };
  const hide = () => {
    tip.hidden = true;
  };
  return { show, hide };
}

/**
 * Fill patterns, so that colour never speaks alone: slanted lines and dots.
 * @param {CanvasRenderingContext2D} context
 * @param {"lines" | "dots"} kind
 * @param {string} colour
 */
export function pattern(context, kind, colour) {
  const tile = document.createElement("canvas");
  tile.width = tile.height = 6;
  const c = /** @type {CanvasRenderingContext2D} */ (tile.getContext("2d"));
  c.strokeStyle = c.fillStyle = colour;
  c.lineWidth = 1.1;
  c.beginPath();
  if (kind === "lines") {
    for (const x of [-6, 0, 6]) {
      c.moveTo(x, 6);
      c.lineTo(x + 6, 0);
    }
    c.stroke();
  } else {
    c.arc(2, 2, 0.9, 0, 7);
    c.fill();
  }
  return /** @type {CanvasPattern} */ (context.createPattern(tile, "repeat"));
}

/**
 * Listen to changes of traits until stopped.
 * @param {Model} model
 * @param {string[]} names
 * @param {() => void} callback
 * @returns {() => void}
 */
export function onChange(model, names, callback) {
  for (const name of names) model.on(`change:${name}`, callback);
  return () => {
    for (const name of names) model.off(`change:${name}`, callback);
  };
}

/**
 * A line that says so where the kernel is gone, and goes away when it is back.
 * @param {Model} model
 * @param {HTMLElement} root
 * @returns {() => void} stops watching
 */
export function kernelNotice(model, root) {
  const notice = element(
    "div",
    "tb-notice",
    "The kernel was restarted or is gone: this is the last state. Run the cell again.",
  );
  notice.setAttribute("role", "alert");
  notice.hidden = true;
  root.prepend(notice);
  const update = () =>
    setTimeout(() => {
      // ipywidgets marks the element of a view whose comm is closed.
      notice.hidden = !root.closest(".jupyter-widgets-disconnected, .jp-widgets-disconnected, .widgets-disconnected");
    });
  return onChangeOf(model, "comm_live_update", update);
}

/**
 * Hide the picture that stands in for a view where there is no kernel: the view is live.
 * @param {Model} model
 * @param {HTMLElement} root
 */
export function hideStandIn(model, root) {
  const rule = model.get("_stand_in_style");
  if (rule) root.append(element("style", "", rule));
}

/** @param {Model} model @param {string} event @param {() => void} callback */
function onChangeOf(model, event, callback) {
  model.on(event, callback);
  return () => model.off(event, callback);
}

/**
 * Buttons in a row; each entry is label, title and action.
 * @param {HTMLElement} parent
 * @param {[string, string, () => void][]} entries
 */
export function buttons(parent, entries) {
  const group = element("span", "tb-buttons"); // they wrap together
  for (const [label, title, act] of entries) {
    const button = element("button", "tb-button", label);
    button.title = title;
    button.setAttribute("aria-label", title);
    button.addEventListener("click", act);
    group.append(button);
  }
  parent.append(group);
}

/**
 * A straight line, in the style that is set.
 * @param {CanvasRenderingContext2D} c
 * @param {number} a
 * @param {number} b
 * @param {number} x
 * @param {number} y
 */
export function line(c, a, b, x, y) {
  c.beginPath();
  c.moveTo(a, b);
  c.lineTo(x, y);
  c.stroke();
}

/**
 * Words over a plot: what its height means on the left, what its width means on the right, as long as there is room.
 * @param {CanvasRenderingContext2D} c
 * @param {string} upwards
 * @param {string[]} along the same in fewer and fewer words
 * @param {number} left
 * @param {number} right
 * @param {number} y
 */
export function headings(c, upwards, along, left, right, y) {
  c.textAlign = "left";
  c.fillText(upwards, left, y);
  const room = right - left - c.measureText(upwards).width - 12;
  c.textAlign = "right";
  c.fillText(along.find((words) => c.measureText(words).width <= room) ?? "", right, y);
  c.textAlign = "left";
}

/**
 * The first of some texts that there is room for, on a light plate; nothing where none fits.
 * @param {CanvasRenderingContext2D} c
 * @param {Theme} theme
 * @param {string[]} texts the longest first
 * @param {number} x
 * @param {number} middle
 * @param {number} room
 */
export function labelIn(c, theme, texts, x, middle, room) {
  const text = texts.find((t) => c.measureText(t).width <= room);
  if (!text) return;
  c.globalAlpha = 0.6;
  c.fillStyle = "#ffffff";
  c.fillRect(x - 2, middle - 7, c.measureText(text).width + 4, 14);
  c.globalAlpha = 1;
  c.fillStyle = theme.ink;
  c.textAlign = "left";
  c.textBaseline = "middle";
  c.fillText(text, x, middle);
}

/**
 * Words on a plate of the ground's colour.
 * @param {CanvasRenderingContext2D} c
 * @param {Theme} theme
 * @param {string} words
 * @param {number} x
 * @param {number} y
 * @param {"left" | "right"} align
 */
export function plate(c, theme, words, x, y, align) {
  c.font = "bold 11px system-ui, sans-serif";
  c.textAlign = align;
  c.textBaseline = "middle";
  const width = c.measureText(words).width;
  c.globalAlpha = 0.85;
  c.fillStyle = theme.panel;
  c.fillRect(align === "right" ? x - width - 2 : x - 2, y - 8, width + 4, 15);
  c.globalAlpha = 1;
  c.fillStyle = theme.text;
  c.fillText(words, x, y);
  c.font = "11px system-ui, sans-serif";
  c.textAlign = "left";
}
