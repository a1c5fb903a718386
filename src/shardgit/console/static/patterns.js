// A colour and a pattern for each shard, and for each part of a request's time: either alone tells them apart.

import { draw } from "./dom.js";

export const COLOURS = 8;
const SIZE = 8;

const MARKS = [
  () => [],
  () => [["path", { d: "M-2 2 L2 -2 M0 8 L8 0 M6 10 L10 6" }]],
  () => [["circle", { cx: 4, cy: 4, r: 1.6, class: "dot" }]],
  () => [["path", { d: "M0 4 H8" }]],
  () => [["path", { d: "M-2 6 L2 10 M0 0 L8 8 M6 -2 L10 2" }]],
  () => [["path", { d: "M4 0 V8" }]],
  () => [["path", { d: "M0 0 L8 8 M8 0 L0 8" }]],
  () => [["path", { d: "M0 6 L4 2 L8 6" }]],
];

/** Put the patterns into the page, once: what fills with ``fillOf`` finds them. */
export function install() {
  const patterns = [];
  for (let colour = 0; colour < COLOURS; colour += 1) {
    MARKS.forEach((marks, mark) => {
      patterns.push(draw(
        "pattern",
        { id: `p${colour}-${mark}`, width: SIZE, height: SIZE, patternUnits: "userSpaceOnUse" },
        draw("rect", { width: SIZE, height: SIZE, class: `c${colour}` }),
        ...marks().map(([tag, attributes]) => draw(tag, { class: "over", ...attributes })),
      ));
    });
  }
  const holder = draw("svg", { class: "patterns", "aria-hidden": "true", width: 0, height: 0 }, draw("defs", {}, ...patterns));
  document.body.append(holder);
}

/** Return what fills the area of a number. */
export function fillOf(number) {
  const colour = number % COLOURS;
  const mark = (number + Math.floor(number / COLOURS)) % MARKS.length;
  return `url(#p${colour}-${mark})`;
}

/** Return a small square in a number's colour and pattern. */
export function swatch(number) {
  return draw(
    "svg",
    { class: "swatch", width: 14, height: 14, "aria-hidden": "true" },
    draw("rect", { width: 14, height: 14, rx: 3, fill: fillOf(number) }),
  );
}

/** Return a bar of parts: [{number, share}], in a frame that stands for 1. */
export function bar(parts, label = null) {
  const box = draw("svg", {
    class: "bar", viewBox: "0 0 100 10", preserveAspectRatio: "none", role: label ? "img" : null,
    "aria-label": label, "aria-hidden": label ? null : "true",
  });
  // Not scaled with the box: patterns would be stretched.
  box.removeAttribute("viewBox");
  let at = 0;
  for (const part of parts) {
    const wide = Math.max(0, Math.min(part.share, 1 - at));
    box.append(draw("rect", {
      x: `${at * 100}%`, y: 0, width: `${wide * 100}%`, height: "100%",
      fill: part.hollow ? null : fillOf(part.number), class: part.hollow ? "hollow" : null,
    }));
    at += wide;
  }
  return box;
}
