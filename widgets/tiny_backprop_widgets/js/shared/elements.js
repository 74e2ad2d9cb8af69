// @ts-check
/**
 * Elements of a page: texts, buttons, a tooltip.
 *
 * Texts of the user's program reach the page through `textContent` and canvas text alone, never as HTML.
 */
import { shortened } from "./text.js";

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
