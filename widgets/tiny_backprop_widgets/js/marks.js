// @ts-check
/** Marks under a slider: a tick and a word each; a click takes the slider there. */
import { element, onChange, onTheme, themeOf } from "./shared.js";

/** @typedef {{ at: number, row: number, text: string, title: string }} Mark */

/** @param {{ model: import("./shared.js").Model & { send(content: any): void }, el: HTMLElement }} context */
export function renderMarks({ model, el }) {
  const root = element("div", "tb-view tb-marks");
  el.append(root);

  function draw() {
    root.dataset.theme = themeOf(el).isDark ? "dark" : "light";
    root.replaceChildren();
    for (const [i, mark] of /** @type {Mark[]} */ (model.get("_marks")).entries()) {
      const share = `${100 * mark.at}%`;
      const tick = element("i");
      tick.style.left = share;
      tick.style.height = mark.row ? "1.7em" : "0.4em";
      root.append(tick);
      const button = element("button", "", mark.text);
      button.title = mark.title;
      button.setAttribute("aria-label", mark.title);
      button.addEventListener("click", () => model.send(i));
      button.dataset.at = String(mark.at);
      button.style.left = share;
      button.style.top = mark.row ? "1.6em" : "0.35em";
      button.style.transform = `translateX(-${share})`; // words at an end stay inside
      root.append(button);
    }
  }

  draw();
  const stops = [onTheme(draw), onChange(model, ["_marks"], draw)];
  return () => {
    for (const end of stops) end();
    root.remove();
  };
}

export default { render: renderMarks };
