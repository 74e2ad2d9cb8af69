// @ts-check
/** What several views draw on their canvas: patterns, lines, axes, words. */
import { ticks } from "./ranges.js";
import { formatBytes } from "./text.js";

/**
 * Fill patterns, so that colour never speaks alone: slanted lines and dots.
 * @param {CanvasRenderingContext2D} context
 * @param {"lines" | "dots"} kind
 * @param {string} colour
 */
export function pattern(context, kind, colour) {
  const tile = document.createElement("canvas");
  tile.width = tile.height = 6;
  const c = /** @type {CanvasRenderingContext2D} */ (tile.getContext("2d"));
  c.strokeStyle = c.fillStyle = colour;
  c.lineWidth = 1.1;
  c.beginPath();
  if (kind === "lines") {
    for (const x of [-6, 0, 6]) {
      c.moveTo(x, 6);
      c.lineTo(x + 6, 0);
    }
    c.stroke();
  } else {
    c.arc(2, 2, 0.9, 0, 7);
    c.fill();
  }
  return /** @type {CanvasPattern} */ (context.createPattern(tile, "repeat"));
}

/**
 * A straight line, in the style that is set.
 * @param {CanvasRenderingContext2D} c
 * @param {number} a
 * @param {number} b
 * @param {number} x
 * @param {number} y
 */
export function line(c, a, b, x, y) {
  c.beginPath();
  c.moveTo(a, b);
  c.lineTo(x, y);
  c.stroke();
}

/**
 * An axis of bytes to the left of a plot.
 * @param {CanvasRenderingContext2D} c
 * @param {import("./theme.js").Theme} theme
 * @param {number} low
 * @param {number} high
 * @param {number} left
 * @param {(bytes: number) => number} yOf
 */
export function byteAxis(c, theme, low, high, left, yOf) {
  c.strokeStyle = theme.line;
  c.lineWidth = 1;
  c.fillStyle = theme.faint;
  c.textBaseline = "middle";
  c.textAlign = "right";
  for (const bytes of ticks(low, high, 5, 1024)) {
    const y = Math.round(yOf(bytes)) + 0.5;
    line(c, left - 4, y, left, y);
    c.fillText(formatBytes(bytes), left - 7, y);
  }
}

/**
 * Whole numbers below a plot.
 * @param {CanvasRenderingContext2D} c
 * @param {number} low
 * @param {number} high
 * @param {number} n
 * @param {number} y
 * @param {(at: number) => number} xOf
 */
export function countAxis(c, low, high, n, y, xOf) {
  c.textAlign = "center";
  c.textBaseline = "top";
  for (const at of ticks(low, high, n)) {
    if (at === Math.round(at)) c.fillText(at.toLocaleString("en"), xOf(at), y);
  }
}

/**
 * Words over a plot: what its height means on the left, what its width means on the right, as long as there is room.
 * @param {CanvasRenderingContext2D} c
 * @param {string} upwards
 * @param {string[]} along the same in fewer and fewer words
 * @param {number} left
 * @param {number} right
 * @param {number} y
 */
export function headings(c, upwards, along, left, right, y) {
  c.textAlign = "left";
  c.fillText(upwards, left, y);
  const room = right - left - c.measureText(upwards).width - 12;
  c.textAlign = "right";
  c.fillText(along.find((words) => c.measureText(words).width <= room) ?? "", right, y);
  c.textAlign = "left";
}

/**
 * The first of some texts that there is room for, on a light plate; nothing where none fits.
 * @param {CanvasRenderingContext2D} c
 * @param {import("./theme.js").Theme} theme
 * @param {string[]} texts the longest first
 * @param {number} x
 * @param {number} middle
 * @param {number} room
 */
export function labelIn(c, theme, texts, x, middle, room) {
  const text = texts.find((t) => c.measureText(t).width <= room);
  if (!text) return;
  c.globalAlpha = 0.6;
  c.fillStyle = "#ffffff";
  c.fillRect(x - 2, middle - 7, c.measureText(text).width + 4, 14);
  c.globalAlpha = 1;
  c.fillStyle = theme.ink;
  c.textAlign = "left";
  c.textBaseline = "middle";
  c.fillText(text, x, middle);
}

/**
 * Words on a plate of the ground's colour.
 * @param {CanvasRenderingContext2D} c
 * @param {import("./theme.js").Theme} theme
 * @param {string} words
 * @param {number} x
 * @param {number} y
 * @param {"left" | "right"} align
 */
export function plate(c, theme, words, x, y, align) {
  c.font = "bold 11px system-ui, sans-serif";
  c.textAlign = align;
  c.textBaseline = "middle";
  const width = c.measureText(words).width;
  c.globalAlpha = 0.85;
  c.fillStyle = theme.panel;
  c.fillRect(align === "right" ? x - width - 2 : x - 2, y - 8, width + 4, 15);
  c.globalAlpha = 1;
  c.fillStyle = theme.text;
  c.fillText(words, x, y);
  c.font = "11px system-ui, sans-serif";
  c.textAlign = "left";
}
