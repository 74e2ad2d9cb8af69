// @ts-check
/**
 * What a view hears from Python: traits, binary ones too, whether the kernel is there, what stands in where it is not.
 *
 * @typedef {{ get(name: string): any, set(name: string, value: any): void, save_changes(): void,
 *             on(event: string, callback: () => void): void, off(event: string, callback: () => void): void }} Model
 */
import { element } from "./elements.js";

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

/** @param {Model} model @param {string} event @param {() => void} callback */
function onChangeOf(model, event, callback) {
  model.on(event, callback);
  return () => model.off(event, callback);
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
