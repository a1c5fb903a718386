// The ring of shards: an arc for each, as long as its share of the partitions; a second one inside while blocks move.

import { by, draw, say } from "./dom.js";
import { count, percent, plural } from "./format.js";
import { fillOf } from "./patterns.js";

const PARTITIONS = 65536;
const SIZE = 260;
const OUTER = [122, 84];
const INNER = [80, 62];
const GAP = 0.012; // radians between two arcs
const LABEL_MIN = 0.035; // of the ring: a shorter arc has no room for its number

let drawn = "";

export function showRing(survey) {
  const noun = survey.clustered ? "node" : "shard";
  const whole = PARTITIONS * survey.replicas;
  const facts = JSON.stringify([survey.epoch, survey.phase, survey.shards.map((s) => [s.id, s.partitions, s.others])]);
  if (facts === drawn) return;
  drawn = facts;
  const shares = (key) => survey.shards.filter((s) => s[key] > 0).map((s) => ({ id: s.id, share: s[key] / whole }));
  const now = shares("partitions");
  const other = survey.phase === "settled" ? [] : shares("others");
  const label = `Ring of ${plural(survey.shards.length, noun)}: ${now.map((s) => `${noun} ${s.id} ${percent(s.share)}`).join(", ")}`;
  const size = SIZE / 2;
  const svg = draw("svg", { viewBox: `${-size} ${-size} ${SIZE} ${SIZE}`, role: "img", "aria-label": label });
  svg.append(...arcs(now, OUTER, true), ...arcs(other, INNER, false));
  svg.append(
    draw("text", { class: "ring-count", y: -4 }, count(survey.shards.length)),
    draw("text", { class: "ring-noun", y: 18 }, survey.shards.length === 1 ? noun : `${noun}s`),
  );
  by("ring").replaceChildren(svg);
  const copies = survey.replicas === 1 ? "one copy of each block" : `${survey.replicas} copies of each block`;
  const phase = {
    settled: "settled",
    copying: "blocks are being copied; the inner ring is what is to come",
    moved: "moved; the inner ring is what was",
  }[survey.phase];
  say(by("ring-words"), `Arcs are shares of 65,536 partitions · ${copies} · epoch ${survey.epoch}, ${phase}`);
}

function arcs(shares, [far, near], labelled) {
  const made = [];
  let at = -Math.PI / 2;
  for (const { id, share } of shares) {
    const wide = share * 2 * Math.PI;
    const gap = shares.length > 1 && wide > 3 * GAP ? GAP : 0;
    made.push(draw("path", { d: sector(at + gap / 2, at + wide - gap / 2, far, near), fill: fillOf(id), class: "arc" }));
    if (labelled && share >= LABEL_MIN) {
      const middle = at + wide / 2;
      const radius = (far + near) / 2;
      const x = radius * Math.cos(middle);
      const y = radius * Math.sin(middle);
      made.push(
        draw("circle", { cx: x, cy: y, r: 12, class: "ring-plate" }),
        draw("text", { x, y: y + 4.5, class: "ring-label" }, String(id)),
      );
    }
    at += wide;
  }
  return made;
}

function sector(from, to, far, near) {
  const end = Math.min(to, from + 2 * Math.PI - 0.0001);
  const large = end - from > Math.PI ? 1 : 0;
  const point = (radius, angle) => `${(radius * Math.cos(angle)).toFixed(3)} ${(radius * Math.sin(angle)).toFixed(3)}`;
  return `M${point(far, from)} A${far} ${far} 0 ${large} 1 ${point(far, end)} L${point(near, end)} A${near} ${near} 0 ${large} 0 ${point(near, from)} Z`;
}
