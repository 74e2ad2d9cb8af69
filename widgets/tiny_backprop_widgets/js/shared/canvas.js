// @ts-check
/** A canvas that follows its element and the theme, and has its keys to itself. */
import { element } from "./elements.js";
import { onTheme } from "./theme.js";

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
