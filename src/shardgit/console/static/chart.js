// Throughput and times of the last minutes, two plots over one axis. Arrow keys or a pointer read it off.

import { by, draw, make, say, Table } from "./dom.js";
import { rate, took } from "./format.js";

const SPAN_MS = 15 * 60 * 1000;
const SPAN_MIN_MS = 3 * 60 * 1000;
const BINS = 90;
const LEFT = 52;
const RIGHT = 10;
const TOP = 20;
const RATE_HIGH = 120;
const BETWEEN = 34;
const TIME_HIGH = 84;
const BELOW = 24;
const LEAST_S = 0.001;

const clock = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });

export class Chart {
  constructor() {
    this.points = [];
    this.at = null; // the bin that is read off
    this.box = by("chart");
    this.box.tabIndex = 0;
    this.box.setAttribute("role", "slider");
    this.box.setAttribute("aria-label", "Traffic of the last minutes; arrow keys go through it");
    this.box.setAttribute("aria-orientation", "horizontal");
    this.table = new Table(by("history"), [
      { title: "Minute", text: (row) => clock.format(row.time).slice(0, 5) },
      { title: "Requests/s", number: true, text: (row) => rate(row.requests) },
      { title: "Failed/s", number: true, text: (row) => rate(row.faults) },
      { title: "Refused/s", number: true, text: (row) => rate(row.refused) },
      { title: "Median", number: true, text: (row) => took(row.p50) },
      { title: "99th percentile", number: true, text: (row) => took(row.p99) },
    ], (row) => row.time);
    by("legend").append(
      entry("line requests", "requests/s"), entry("line faults", "failed/s"),
      entry("line p50", "median"), entry("line p99", "99th percentile"),
      make("span", { id: "reading", class: "reading" }),
    );
    by("history").closest("details").addEventListener("toggle", () => this.draw());
    new ResizeObserver(() => this.draw()).observe(this.box);
    this.box.addEventListener("keydown", (event) => this.#key(event));
    this.box.addEventListener("pointermove", (event) => this.#point(event));
    for (const name of ["pointerleave", "blur"]) this.box.addEventListener(name, () => this.#read(null));
  }

  /** Take the points that are new. */
  add(points) {
    const last = this.points.length ? this.points[this.points.length - 1][0] : 0;
    this.points.push(...points.filter((point) => point[0] > last));
    const oldest = (this.points.length ? this.points[this.points.length - 1][0] : 0) - SPAN_MS;
    while (this.points.length && this.points[0][0] < oldest) this.points.shift();
    this.draw();
  }

  draw() {
    const wide = Math.max(this.box.clientWidth, 240);
    const end = this.points.length ? this.points[this.points.length - 1][0] : Date.now();
    const begin = this.points.length ? this.points[0][0] : end;
    const span = Math.min(SPAN_MS, Math.max(SPAN_MIN_MS, end - begin));
    this.bins = binned(this.points, end - span, span / BINS);
    this.x = (time) => LEFT + ((time - (end - span)) / span) * (wide - LEFT - RIGHT);
    const high = TOP + RATE_HIGH + BETWEEN + TIME_HIGH + BELOW;
    const svg = draw("svg", { width: wide, height: high, viewBox: `0 0 ${wide} ${high}`, "aria-hidden": "true" });
    this.#rates(svg, wide);
    this.#times(svg, wide);
    this.#axis(svg, end, span, high);
    this.cross = draw("line", { class: "cross", y1: TOP, y2: high - BELOW, visibility: "hidden" });
    svg.append(this.cross);
    this.box.replaceChildren(svg);
    this.box.setAttribute("aria-valuemin", 0);
    this.box.setAttribute("aria-valuemax", Math.max(this.bins.length - 1, 0));
    this.#read(this.at);
    say(by("traffic-span"), `the last ${Math.round(span / 60000)} minutes`);
    if (by("history").closest("details").open) this.table.show(binned(this.points, Math.floor(begin / 60000) * 60000, 60000).reverse());
  }

  #rates(svg, wide) {
    const most = nice(Math.max(1, ...this.bins.map((bin) => bin.requests)));
    const y = (value) => TOP + RATE_HIGH * (1 - value / most);
    grid(svg, wide, [0, most / 2, most].map((value) => [y(value), rate(value)]));
    svg.append(draw("text", { class: "axis title", x: LEFT, y: TOP - 8 }, "requests/s"));
    const runs = this.#runs((bin) => [this.x(bin.time), y(bin.requests)]);
    for (const run of runs) {
      const base = y(0);
      svg.append(draw("path", { class: "area", d: `${path(run)} L${run[run.length - 1][0]} ${base} L${run[0][0]} ${base} Z` }));
      svg.append(draw("path", { class: "line requests", d: path(run) }));
    }
    for (const bin of this.bins) {
      if (bin.faults <= 0) continue;
      svg.append(draw("line", { class: "line faults", x1: this.x(bin.time), x2: this.x(bin.time), y1: y(0), y2: Math.min(y(bin.faults), y(0) - 5) }));
    }
  }

  #times(svg, wide) {
    const top = TOP + RATE_HIGH + BETWEEN;
    const seen = this.bins.flatMap((bin) => [bin.p50, bin.p99]).filter((value) => value !== null);
    const least = Math.floor(Math.log10(Math.max(LEAST_S, Math.min(0.01, ...seen))));
    const most = Math.max(Math.ceil(Math.log10(Math.max(0.1, ...seen))), least + 1);
    const y = (seconds) => {
      const at = Math.log10(Math.max(seconds, 10 ** least));
      return top + TIME_HIGH * (1 - (at - least) / (most - least));
    };
    const lines = [];
    for (let step = least; step <= most; step += Math.max(1, Math.ceil((most - least) / 4))) lines.push([y(10 ** step), took(10 ** step)]);
    grid(svg, wide, lines);
    svg.append(draw("text", { class: "axis title", x: LEFT, y: top - 8 }, "time of a request (logarithmic)"));
    for (const key of ["p50", "p99"]) {
      for (const run of this.#runs((bin) => (bin[key] === null ? null : [this.x(bin.time), y(bin[key])]))) {
        if (run.length > 1) svg.append(draw("path", { class: `line ${key}`, d: path(run) }));
        else svg.append(draw("circle", { class: `spot ${key}`, cx: run[0][0], cy: run[0][1], r: 2 }));
      }
    }
  }

  #axis(svg, end, span, high) {
    const minutes = Math.round(span / 60000);
    const step = minutes > 8 ? 5 : 1;
    for (let back = 0; back <= minutes; back += step) {
      const x = this.x(end - back * 60000);
      if (x < LEFT - 1) break;
      const anchor = back === 0 ? "end" : "middle";
      svg.append(draw("text", { class: "axis", x: back === 0 ? x + RIGHT : x, y: high - 6, "text-anchor": anchor }, back === 0 ? "now" : `−${back} min`));
    }
  }

  /** Return the coordinates of neighbouring bins, a list for each stretch without a hole. */
  #runs(place) {
    const runs = [[]];
    for (const bin of this.bins) {
      const point = place(bin);
      if (point === null) runs.push([]);
      else runs[runs.length - 1].push(point);
    }
    return runs.filter((run) => run.length);
  }

  #key(event) {
    const last = this.bins.length - 1;
    const steps = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageUp: 10, PageDown: -10 };
    if (last < 0) return;
    if (event.key === "Escape") this.#read(null);
    else if (event.key === "Home") this.#read(0);
    else if (event.key === "End") this.#read(last);
    else if (event.key in steps) this.#read(Math.max(0, Math.min(last, (this.at ?? last) + steps[event.key])));
    else return;
    event.preventDefault();
  }

  #point(event) {
    const x = event.clientX - this.box.getBoundingClientRect().left;
    let best = null;
    this.bins.forEach((bin, at) => {
      if (best === null || Math.abs(this.x(bin.time) - x) < Math.abs(this.x(this.bins[best].time) - x)) best = at;
    });
    this.#read(best);
  }

  #read(at) {
    this.at = at;
    const bin = at === null ? null : this.bins[Math.min(at, this.bins.length - 1)];
    this.cross.setAttribute("visibility", bin ? "visible" : "hidden");
    const shown = bin ?? this.bins[this.bins.length - 1];
    const words = shown ? inWords(shown) : "no traffic was seen yet";
    this.box.setAttribute("aria-valuenow", at ?? Math.max(this.bins.length - 1, 0));
    this.box.setAttribute("aria-valuetext", words);
    say(by("reading"), bin ? words : "");
    if (!bin) return;
    this.cross.setAttribute("x1", this.x(bin.time));
    this.cross.setAttribute("x2", this.x(bin.time));
  }
}

const inWords = (bin) =>
  `${clock.format(bin.time)}: ${rate(bin.requests)} requests/s, ${rate(bin.faults)} failed, median ${took(bin.p50)}, 99th percentile ${took(bin.p99)}`;

/** Put points together that lie in one stretch of time: means of rates, the median's mean, the worst 99th percentile. */
function binned(points, begin, width) {
  const bins = new Map();
  for (const [time, requests, faults, refused, p50, p99] of points) {
    const number = Math.floor((time - begin) / width);
    if (number < 0) continue;
    const bin = bins.get(number) ?? { time: begin + number * width, all: [] };
    bin.all.push({ requests, faults, refused, p50, p99 });
    bins.set(number, bin);
  }
  return [...bins.values()].map(({ time, all }) => {
    const mean = (key) => all.reduce((sum, one) => sum + one[key], 0) / all.length;
    const known = (key) => all.map((one) => one[key]).filter((value) => value !== null);
    const medians = known("p50");
    return {
      time,
      requests: mean("requests"),
      faults: mean("faults"),
      refused: mean("refused"),
      p50: medians.length ? medians.reduce((sum, one) => sum + one, 0) / medians.length : null,
      p99: known("p99").length ? Math.max(...known("p99")) : null,
    };
  });
}

function grid(svg, wide, lines) {
  for (const [y, words] of lines) {
    svg.append(
      draw("line", { class: "grid", x1: LEFT, x2: wide - RIGHT, y1: y, y2: y }),
      draw("text", { class: "axis", x: LEFT - 6, y: y + 4, "text-anchor": "end" }, words),
    );
  }
}

const path = (points) => `M${points.map(([x, y]) => `${x.toFixed(1)} ${y.toFixed(1)}`).join(" L")}`;

/** Return the next number of the form 1, 2 or 5 times a power of ten. */
function nice(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((times) => times * power).find((one) => one >= value);
}

function entry(kind, words) {
  const line = draw("svg", { width: 26, height: 10, "aria-hidden": "true" }, draw("line", { class: kind, x1: 1, x2: 25, y1: 5, y2: 5 }));
  return make("span", { class: "entry" }, line, words);
}
