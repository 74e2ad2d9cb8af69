// @ts-check
/** The table of tensors that are alive at the peak, largest first; a row can be chosen. */
import { element, formatBytes, hideStandIn, onChange, onTheme, shortened, shortPath, themeOf } from "./shared.js";

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

/** @param {{ model: import("./shared.js").Model, el: HTMLElement }} context */
export function renderTable({ model, el }) {
  const root = element("div", "tb-view tb-tensors");
  const table = rowsIn(root, choose);
  el.append(root);
  hideStandIn(model, root);
  const themed = () => {
    root.dataset.theme = themeOf(el).isDark ? "dark" : "light";
  };
  const mark = () => table.mark(model.get("value"));

  // Not before the frontier has been painted: a slider is being dragged. And not in a tab that is hidden.
  let request = 0;
  let isStale = false;
  const shown = new ResizeObserver(() => {
    if (isStale && root.offsetParent) draw();
  });
  shown.observe(root);
  const later = () => {
    isStale = true;
    if (!root.offsetParent) return;
    cancelAnimationFrame(request);
    request = requestAnimationFrame(() => {
      request = requestAnimationFrame(draw);
    });
  };

  function draw() {
    isStale = false;
    themed();
    const { header, rows, caption } = model.get("_rows");
    table.fill(header, rows, caption);
    mark();
  }

  /** @param {number} value */
  function choose(value) {
    model.set("value", value);
    model.save_changes();
    mark();
  }

  draw();
  const stops = [onTheme(el, themed), onChange(model, ["_rows"], later), onChange(model, ["value"], mark)];
  return () => {
    shown.disconnect();
    cancelAnimationFrame(request);
    for (const end of stops) end();
    root.remove();
  };
}

export default { render: renderTable };
