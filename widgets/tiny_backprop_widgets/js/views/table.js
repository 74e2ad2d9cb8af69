// @ts-check
/** The table of tensors that are alive at the peak, largest first; a row can be chosen. */
import { element } from "../shared/elements.js";
import { hideStandIn, onChange } from "../shared/model.js";
import { rowsIn } from "../shared/rows.js";
import { onTheme, themeOf } from "../shared/theme.js";

/** @param {{ model: import("../shared/model.js").Model, el: HTMLElement }} context */
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
