// @ts-check
/** Rows of a table that can be chosen. */
import { element } from "./elements.js";
import { formatBytes, shortened, shortPath } from "./text.js";

/**
 * A table whose rows can be chosen by mouse and keys: one row is a stop of the Tab key, arrow keys go to the others.
 * @param {HTMLElement} root
 * @param {(value: number) => void} choose
 */
export function rowsIn(root, choose) {
  const caption = element("div", "tb-bar");
  const scroll = element("div", "tb-scroll");
  const table = element("table", "tb-table");
  table.setAttribute("role", "grid");
  scroll.append(table);
  root.append(caption, scroll);

  /**
   * Show rows, each a number to choose it by, bytes and texts.
   * @param {string[]} header
   * @param {[number, number, ...string[]][]} lines
   * @param {string} text the caption
   */
  function fill(header, lines, text) {
    caption.textContent = text;
    table.setAttribute("aria-label", text);
    const focused = /** @type {HTMLElement | null} */ (document.activeElement);
    const kept = table.contains(focused) ? focused?.dataset.value : undefined;
    const head = element("thead");
    const names = element("tr");
    for (const name of header) names.append(element("th", "", name));
    head.append(names);
    const body = element("tbody");
    for (const [value, bytes, ...cells] of lines) body.append(row(value, [formatBytes(bytes), ...cells]));
    table.replaceChildren(head, body);
    if (kept !== undefined)
      (rows().find((tr) => tr.dataset.value === kept) ?? rows()[0])?.focus({ preventScroll: true });
  }

  function rows() {
    return /** @type {HTMLElement[]} */ ([...table.querySelectorAll("tbody tr")]);
  }

  /** Have Tab come to one row. @param {HTMLElement | undefined} stop */
  function stopAt(stop) {
    for (const tr of rows()) tr.tabIndex = tr === stop ? 0 : -1;
  }

  /** @param {number} value @param {string[]} cells */
  function row(value, cells) {
    const tr = element("tr");
    tr.tabIndex = -1;
    tr.setAttribute("aria-label", cells.map((cell) => shortened(cell, 120)).join(", "));
    tr.dataset.value = String(value);
    for (const cell of cells) {
      const td = element("td", "", shortened(shortPath(cell), 120));
      td.title = shortened(cell, 600);
      td.dir = "auto";
      tr.append(td);
    }
    tr.addEventListener("click", () => choose(value));
    tr.addEventListener("focus", () => stopAt(tr));
    tr.addEventListener("keydown", (e) => {
      const next =
        e.key === "ArrowDown" ? tr.nextElementSibling : e.key === "ArrowUp" ? tr.previousElementSibling : null;
      if (e.key !== "Enter" && e.key !== " " && !next) return;
      e.preventDefault();
      e.stopPropagation();
      if (next) /** @type {HTMLElement} */ (next).focus();
      else choose(value);
    });
    return tr;
  }

  /** Mark a row and bring it into sight, inside the table alone: the page stays where it is. @param {number | null} value */
  function mark(value) {
    const all = rows();
    const marked = all.filter((tr) => tr.dataset.value === String(value));
    for (const tr of all) tr.setAttribute("aria-selected", String(marked.includes(tr)));
    stopAt(all.find((tr) => tr === document.activeElement) ?? marked[0] ?? all[0]);
    for (const { offsetTop, offsetHeight } of marked) {
      const isInSight =
        offsetTop >= scroll.scrollTop + 24 && offsetTop + offsetHeight <= scroll.scrollTop + scroll.clientHeight;
      if (!isInSight) scroll.scrollTop = offsetTop - scroll.clientHeight / 2;
    }
  }
  return { fill, mark };
}
