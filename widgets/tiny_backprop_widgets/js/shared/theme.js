// @ts-check
/**
 * Colours by whether the ground is light or dark.
 *
 * @typedef {{ text: string, faint: string, line: string, panel: string, forward: string, backward: string,
 *             saved: string, recomputed: string, gradient: string, transient: string, rest: string, baseline: string,
 *             ink: string, mark: string, isDark: boolean }} Theme
 */

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
