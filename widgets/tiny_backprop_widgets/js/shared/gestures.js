// @ts-check
/**
 * How a picture on a canvas is moved through, the same in all views: drag, wheel, arrow keys, plus and minus, 0, N and P.
 *
 * @typedef {object} Gestures
 * @property {(dx: number, dy: number) => void} pan by pixels; what is shown follows the pointer
 * @property {(magnification: number, x?: number, y?: number) => void} zoom about a point, or the middle
 * @property {() => [number, number]} stride pixels that an arrow key moves
 * @property {() => void} all show everything
 * @property {(x: number, y: number) => void} hover
 * @property {() => void} leave the pointer or the focus is elsewhere
 * @property {(x: number, y: number) => void} click
 * @property {(x: number, y: number) => void} twice a double click
 * @property {(by: number) => void} walk to the next thing, or the one before
 * @property {() => void} clear choose nothing
 * @property {Record<string, () => void>} keys what other keys do
 */

/**
 * Listen to pointer, wheel and keys of a canvas.
 * @param {HTMLCanvasElement} canvas
 * @param {Gestures} on
 */
export function listen(canvas, on) {
  let pressed = /** @type {{ x: number, y: number, moved: boolean } | null} */ (null);
  canvas.addEventListener("pointerdown", (e) => {
    pressed = { x: e.offsetX, y: e.offsetY, moved: false };
    canvas.setPointerCapture(e.pointerId);
  });
  canvas.addEventListener("pointermove", (e) => {
    if (!pressed) return on.hover(e.offsetX, e.offsetY);
    const far = Math.abs(e.offsetX - pressed.x) + Math.abs(e.offsetY - pressed.y) > 3;
    if (!far && !pressed.moved) return;
    on.leave();
    on.pan(e.offsetX - pressed.x, e.offsetY - pressed.y);
    pressed = { x: e.offsetX, y: e.offsetY, moved: true };
  });
  canvas.addEventListener("pointerup", (e) => {
    const isClick = pressed && !pressed.moved;
    pressed = null;
    if (isClick) on.click(e.offsetX, e.offsetY);
  });
  canvas.addEventListener("pointercancel", () => {
    pressed = null;
  });
  canvas.addEventListener("pointerleave", on.leave);
  canvas.addEventListener("blur", on.leave);
  canvas.addEventListener("dblclick", (e) => on.twice(e.offsetX, e.offsetY));
  canvas.addEventListener(
    "wheel",
    (e) => {
      // Without the key, or the canvas chosen first, the wheel scrolls the page.
      if (!e.ctrlKey && !e.metaKey && document.activeElement !== canvas) return;
      e.preventDefault();
      on.zoom(Math.exp(-Math.max(-60, Math.min(60, e.deltaY)) / 200), e.offsetX, e.offsetY);
    },
    { passive: false },
  );
  canvas.addEventListener("keydown", (e) => {
    const [dx, dy] = on.stride();
    const acts = /** @type {Record<string, () => void>} */ ({
      ArrowLeft: () => on.pan(dx, 0),
      ArrowRight: () => on.pan(-dx, 0),
      ArrowUp: () => on.pan(0, dy),
      ArrowDown: () => on.pan(0, -dy),
      "+": () => on.zoom(1.4),
      "=": () => on.zoom(1.4),
      "-": () => on.zoom(1 / 1.4),
      0: on.all,
      n: () => on.walk(1),
      p: () => on.walk(-1),
      Escape: () => {
        on.leave();
        on.clear();
      },
      ...on.keys,
    });
    const act = acts[e.key];
    if (!act || e.ctrlKey || e.metaKey || e.altKey) return;
    e.preventDefault();
    e.stopPropagation();
    act();
  });
}
