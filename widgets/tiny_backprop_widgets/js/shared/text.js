// @ts-check
/** Numbers and texts for people. */

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
const MOST_LETTERS = 240;

/**
 * Bytes with an IEC unit and three significant digits, as Python's `format_bytes` writes them.
 * @param {number} n
 */
export function formatBytes(n) {
  let i = 0;
  while (Math.abs(n) >= 1024 && i < UNITS.length - 1) {
    n /= 1024;
    i += 1;
  }
  const digits = i === 0 || Math.abs(n) >= 999.5 ? n.toFixed(0) : String(Number(n.toPrecision(3)));
  return `${digits} ${UNITS[i]}`;
}

/**
 * A long text shortened for a tooltip; control characters become spaces.
 * @param {string} text
 */
export function shortened(text, most = MOST_LETTERS) {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: these are what is taken out
  const clean = text.replace(/[\u0000-\u001f\u007f\u202a-\u202e\u2066-\u2069]+/g, " ");
  const letters = Array.from(clean.slice(0, 2 * most + 2));
  return letters.length > most ? `${letters.slice(0, most - 1).join("")}…` : letters.join("");
}

/**
 * A source line with the last two folders of its path.
 * @param {string} source
 */
export function shortPath(source) {
  const parts = source.split("/");
  return parts.length > 3 ? `…/${parts.slice(-2).join("/")}` : source;
}
