// @ts-check
/** Marks under a slider: a tick and a word each; a click takes the slider there. */
import { element } from "../shared/elements.js";
import { onChange } from "../shared/model.js";
import { onTheme, themeOf } from "../shared/theme.js";

// In em: where the words begin, and how far apart their rows are; in pixels: the least room between two words.
const [TOP, ROW] = [0.35, 1.45];
const GAP = 6;

/** @typedef {{ at: number, row: number, text: string, title: string }} Mark */

/** @param {{ model: import("../shared/model.js").Model & { send(content: any): void }, el: HTMLElement }} context */
export function renderMarks({ model, el }) {
  const root = element("div", "tb-view tb-marks");
  el.append(root);

  // What words need of room changes with themes and fonts, too, without any other sign.
  const resized = new ResizeObserver(place);

  function draw() {
    root.dataset.theme = themeOf(el).isDark ? "dark" : "light";
    for (const button of root.querySelectorAll("button")) resized.unobserve(button);
    root.replaceChildren();
    for (const [i, mark] of /** @type {Mark[]} */ (model.get("_marks")).entries()) {
      const share = `${100 * mark.at}%`;
      const tick = element("i");
      tick.style.left = share;
      root.append(tick);
      const button = element("button", "", mark.text);
      button.title = mark.title;
      button.setAttribute("aria-label", mark.title);
      button.addEventListener("click", () => model.send(i));
      button.dataset.at = String(mark.at);
      button.style.left = share;
      button.style.transform = `translateX(-${share})`; // words at an end stay inside
      root.append(button);
      button.dataset.wanted = String(mark.row);
      resized.observe(button);
    }
    place();
  }

  /** Put the words into rows, each as high as there is room. */
  function place() {
    const buttons = [...root.querySelectorAll("button")];
    const ticks = root.querySelectorAll("i");
    for (const button of buttons) delete button.dataset.row;
    for (const [i, button] of buttons.entries()) {
      const row = freeRow(button, Number(button.dataset.wanted));
      button.dataset.row = String(row);
      button.style.top = `${TOP + row * ROW}em`;
      ticks[i].style.height = `${TOP + row * ROW}em`;
    }
    const rows = buttons.map((button) => Number(button.dataset.row));
    root.style.height = `${TOP + ROW * (1 + Math.max(1, ...rows))}em`;
  }

  /**
   * The row for the words of a mark, at its own or below, where those before it leave room.
   * @param {HTMLElement} button
   * @param {number} row
   */
  function freeRow(button, row) {
    const box = button.getBoundingClientRect();
    const taken = new Set();
    for (const other of root.querySelectorAll("button")) {
      const its = other.getBoundingClientRect();
      if (other.dataset.row && its.left < box.right + GAP && its.right > box.left - GAP) taken.add(other.dataset.row);
    }
    while (taken.has(String(row))) row += 1;
    return row;
  }

  draw();
  resized.observe(root.parentElement ?? root);
  const stops = [onTheme(el, draw), onChange(model, ["_marks"], draw)];
  return () => {
    resized.disconnect();
    for (const end of stops) end();
    root.remove();
  };
}

export default { render: renderMarks };
