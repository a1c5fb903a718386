// What the parts of the page show of a snapshot.

import { by, keep, make, say, Table } from "./dom.js";
import { ago, bytes, count, percent, plural, rate, span, took } from "./format.js";
import { bar, swatch } from "./patterns.js";
import { showRing } from "./ring.js";

const SHARDS_MAX = 64;
const STATES = {
  starting: "starting",
  well: "all is well",
  warning: "warnings",
  problem: "problems",
  down: "does not serve",
  draining: "draining",
};
const INTO = ["work", "queue", "commit", "journal", "client"]; // by number, so by colour and pattern
const KINDS = {
  gc: "Garbage collection",
  verify: "Verification",
  repair: "Repair",
  rebalance: "Rebalance",
  nodes: "Move of partitions between nodes",
  backup: "Backup",
  restore: "Restore",
  "compact-shards": "Compaction of shards",
};

const partOf = (name) => {
  const at = INTO.indexOf(name);
  return at < 0 ? INTO.length : at;
};

const kindOf = (kind) => {
  if (KINDS[kind]) return KINDS[kind];
  const pool = /^compact-([0-9a-f]{8})$/.exec(kind);
  return pool ? `Compaction of pool ${pool[1]}` : kind;
};

let told = "";

/** The health, in the header and in its part; a change of it is read out. */
export function showHealth(health, snapshot) {
  const badge = by("health-badge");
  badge.dataset.state = health.state;
  say(by("health-word"), STATES[health.state] ?? health.state);
  say(by("version"), snapshot.version);
  say(by("uptime"), `up ${span(snapshot.up_s)}`);
  document.title = `${health.state === "well" ? "" : `${STATES[health.state]} · `}shardgit`;
  const restarts = health.restarts ? ` · ${plural(health.restarts, "restart")}` : "";
  say(by("health-line"), `${health.serving} of ${plural(health.workers, "worker")} serve${restarts}`);
  const troubles = [
    ...health.problems.map((one) => ({ ...one, kind: "problem" })),
    ...health.warnings.map((one) => ({ ...one, kind: "warning" })),
  ];
  keep(by("troubles"), troubles, (one) => `${one.kind}/${one.what}`,
    (one) => make("li", { class: `trouble ${one.kind}` }, make("strong"), " ", make("span")),
    (item, one) => {
      say(item.children[0], `${one.kind === "problem" ? "✕ Problem" : "! Warning"}: ${one.what}`);
      say(item.children[1], `${one.words} (${plural(one.workers, "worker")})`);
    });
  const words = [STATES[health.state], ...troubles.map((one) => `${one.kind}: ${one.what}: ${one.words}`)].join("; ");
  // Not numbers that change by themselves: who listens would be told the same again and again.
  const gist = [health.state, ...troubles.map((one) => `${one.kind} ${one.what}`)].join();
  if (gist !== told) {
    told = gist;
    announce(`Health: ${words}`);
  }
}

/** Have a screen reader say something; for changes of health alone. */
export function announce(words) {
  say(by("announce"), words);
}

export function showTiles(snapshot) {
  const { recent: point, active } = snapshot.traffic;
  const shards = snapshot.survey?.shards ?? [];
  const known = shards.filter((one) => one.bytes !== null);
  const stored = known.reduce((sum, one) => sum + one.bytes, 0);
  const blocks = known.reduce((sum, one) => sum + (one.blocks ?? 0), 0);
  const tiles = [
    ["Requests", point ? rate(point[1]) : "–", "a second"],
    ["Median", point ? took(point[4]) : "–", "of these"],
    ["99th percentile", point ? took(point[5]) : "–", "of these"],
    ["Failed", point ? rate(point[2]) : "–", "a second"],
    ["Under way", count(active), "requests now"],
    known.length
      ? ["Stored", bytes(stored), `in ${plural(blocks, "block")}`]
      : ["Nodes", count(shards.length), `${count(shards.filter((one) => one.processes).length)} heard of`],
  ];
  keep(by("tiles"), tiles, ([title]) => title,
    ([title]) => make("div", { class: "tile" }, make("dt", {}, title), make("dd", { class: "figure" }), make("dd", { class: "quiet" })),
    (tile, [, figure, words]) => {
      say(tile.children[1], figure);
      say(tile.children[2], words);
    });
}

const methods = new Table(by("methods"), [
  { title: "Method", text: (row) => `${row.edge} ${row.method}` },
  { title: "Requests/s", number: true, text: (row) => rate(row.requests) },
  { title: "Failed/s", number: true, text: (row) => rate(row.faults) },
  { title: "Refused/s", number: true, text: (row) => rate(row.refused) },
  { title: "Median", number: true, text: (row) => took(row.p50_s) },
  { title: "99 %", number: true, text: (row) => took(row.p99_s) },
], (row) => `${row.edge} ${row.method}`);

export function showMethods(traffic) {
  by("methods").hidden = !traffic.methods.length;
  methods.show(traffic.methods.slice(0, 12));
  const spent = Object.entries(traffic.spent).filter(([, part]) => part > 0.0005).sort((a, b) => b[1] - a[1]);
  const most = Math.max(...spent.map(([, part]) => part), 0.001);
  by("spent-none").hidden = spent.length > 0;
  keep(by("spent"), spent, ([into]) => into,
    ([into]) => make("li", {}, make("span", { class: "name" }, swatch(partOf(into)), into), make("span", { class: "holder" }), make("span", { class: "figure-small" })),
    (item, [into, part]) => {
      item.children[1].replaceChildren(bar([{ number: partOf(into), share: part / most }]));
      say(item.children[2], `${part < 0.01 ? part.toFixed(3) : part.toFixed(2)} s/s`);
    });
}

// ---- shards

const stateMark = { active: "●", joined: "◌", draining: "◐", drained: "○", closing: "◍", "read-only": "◉", silent: "✕" };
let clustered = null;
let bars = null;

const shardColumns = (survey) => {
  const common = [
    {
      title: survey.clustered ? "Node" : "Shard",
      show: (cell, shard) => {
        if (!cell.firstChild) cell.append(swatch(shard.id), make("span"));
        say(cell.lastChild, survey.clustered ? `${shard.id} ${shard.name}` : String(shard.id));
      },
    },
    {
      title: "State",
      show: (cell, shard) => {
        if (!cell.firstChild) cell.append(make("span", {}, make("span", { "aria-hidden": "true" }), make("span")));
        say(cell.firstChild.firstChild, `${stateMark[shard.state] ?? ""} `);
        say(cell.firstChild.lastChild, shard.state);
      },
    },
  ];
  const held = {
    title: "Held", class: "held",
    show: (cell, shard) => {
      if (shard.file_bytes === null) return say(cell, "on another machine");
      if (!cell.querySelector(".holder")) cell.replaceChildren(make("span", { class: "holder" }), make("span", { class: "under" }));
      const live = shard.bytes ?? shard.file_bytes;
      const parts = [{ number: shard.id, share: live / survey.most }, { hollow: true, share: Math.max(0, shard.file_bytes - live) / survey.most }];
      cell.children[0].replaceChildren(bar(parts));
      return say(cell.children[1], shard.bytes === null ? `${bytes(shard.file_bytes)} in its cache` : `${bytes(live)} live, ${bytes(shard.file_bytes)} file`);
    },
  };
  const rest = [
    { title: "Blocks", number: true, text: (shard) => count(shard.blocks) },
    { title: "Disk free", number: true, text: (shard) => bytes(shard.free_bytes) },
    { title: "Ring", number: true, text: (shard) => percent(shard.partitions / (65536 * survey.replicas)) },
    { title: "Weight", number: true, text: (shard) => String(shard.weight) },
    { title: "Zone", number: true, text: (shard) => shard.zone || "–" },
  ];
  const processes = { title: "Processes", number: true, text: (shard) => count(shard.processes) };
  return survey.clustered ? [...common, held, rest[1], rest[2], rest[3], rest[4], processes] : [...common, held, ...rest];
};

export function showShards(snapshot) {
  const { survey } = snapshot;
  say(by("survey-age"), ageWords(snapshot));
  if (!survey) return;
  showRing(survey);
  survey.most = Math.max(...survey.shards.map((shard) => Math.max(shard.file_bytes ?? 0, shard.bytes ?? 0)), 1);
  if (clustered !== survey.clustered) {
    clustered = survey.clustered;
    say(by("shards-title"), clustered ? "Nodes" : "Shards");
    say(by("bars-caption"), clustered ? "What each node is given and has here" : "What each shard holds");
    bars = new Table(by("bars"), shardColumns(survey), (shard) => shard.id);
  }
  bars.columns = shardColumns(survey);
  bars.show(survey.shards.slice(0, SHARDS_MAX));
  by("more-shards").hidden = survey.shards.length <= SHARDS_MAX;
  say(by("more-shards"), `and ${count(survey.shards.length - SHARDS_MAX)} more; shard list tells them all`);
}

function ageWords(snapshot) {
  if (!snapshot.survey) return "no worker has told yet";
  return snapshot.survey_age_s > 6 ? `as of ${span(snapshot.survey_age_s)} ago: no worker answers` : "";
}

// ---- operations

const unit = (operation, number) => (operation.unit === "bytes" ? bytes(number) : operation.unit === "seconds" ? span(number) : `${count(number)} ${operation.unit}`);
const begun = new Map(); // where an operation's stage was when it was first seen

function paceOf(operation, now) {
  const key = `${operation.kind}/${operation.started_ms}/${operation.stage}`;
  if (!begun.has(key)) begun.set(key, { time: now, done: operation.done });
  if (begun.size > 200) begun.delete(begun.keys().next().value);
  const first = begun.get(key);
  const seconds = (now - first.time) / 1000;
  const pace = seconds > 4 ? (operation.done - first.done) / seconds : 0;
  return pace > 0 && operation.total ? ` · ${span((operation.total - operation.done) / pace)} left` : "";
}

export function showOperations(snapshot) {
  const found = snapshot.survey?.operations ?? [];
  by("operations-none").hidden = found.length > 0;
  keep(by("running"), found, (one) => `${one.kind}/${one.started_ms}`,
    (one) => {
      const id = `operation-${one.kind}`;
      return make("li", {}, make("div", { class: "row" }, make("strong", { id }), make("span", { class: "quiet" })),
        make("progress", { "aria-labelledby": id, max: 1 }), make("div", { class: "quiet" }));
    },
    (item, one) => {
      const [title, meter, words] = item.children;
      say(title.children[0], kindOf(one.kind));
      say(title.children[1], one.process ? `for ${span((snapshot.time_ms - one.started_ms) / 1000)}` : "goes on elsewhere, or waits to be begun again");
      const share = one.total ? Math.min(1, one.done / one.total) : null;
      if (share === null) meter.removeAttribute("value");
      else meter.value = share;
      const amount = one.total ? `${unit(one, one.done)} of ${unit(one, one.total)}, ${percent(share)}` : one.done ? unit(one, one.done) : "";
      say(words, [one.stage, amount].filter(Boolean).join(": ") + paceOf(one, snapshot.time_ms));
    });
  const ended = snapshot.survey?.ended ?? [];
  by("ended-none").hidden = ended.length > 0;
  keep(by("ended"), ended, (one) => one.kind,
    () => make("li", {}, make("span", { "aria-hidden": "true" }), make("strong"), make("span", { class: "quiet" }), make("div", { class: "quiet" })),
    (item, one) => {
      say(item.children[0], one.is_well ? "✓ " : "! ");
      say(item.children[1], kindOf(one.kind));
      say(item.children[2], ` ${ago(one.ended_ms, snapshot.time_ms)}`);
      say(item.children[3], one.words);
    });
}

// ---- slow requests, hot repositories

const slowTable = new Table(by("slow-table"), [
  { title: "Request", class: "what", text: (one) => one.what },
  { title: "When", text: (one) => one.when },
  { title: "Method", text: (one) => `${one.edge} ${one.method}` },
  { title: "Code", text: (one) => one.code },
  { title: "Took", number: true, text: (one) => took(one.seconds) },
  {
    title: "What it went into", class: "into",
    show: (cell, one) => {
      const spent = Object.entries(one.spent).filter(([, part]) => part > 0).sort((a, b) => b[1] - a[1]);
      const words = spent.map(([into, part]) => `${into} ${took(part)}`).join(" · ") || "nothing that is counted";
      if (cell.dataset.words === words) return;
      cell.dataset.words = words;
      const whole = Math.max(one.seconds, ...spent.map(([, part]) => part), spent.reduce((sum, [, part]) => sum + part, 0), 0.001);
      const parts = spent.map(([into, part]) => ({ number: partOf(into), share: part / whole }));
      const named = spent.map(([into, part]) => make("span", { class: "part" }, swatch(partOf(into)), `${into} ${took(part)}`));
      cell.replaceChildren(make("span", { class: "holder" }, bar(parts)), make("span", { class: "under" }, ...(named.length ? named : [words])));
    },
  },
], (one) => `${one.time_ms} ${one.edge} ${one.what} ${one.seconds}`);

export function showSlow(snapshot) {
  by("slow-none").hidden = snapshot.slow.length > 0;
  by("slow-table").hidden = !snapshot.slow.length;
  slowTable.show(snapshot.slow.map((one) => ({ ...one, when: ago(one.time_ms, snapshot.time_ms) })));
}

const hotTable = new Table(by("hot-table"), [
  { title: "Repository", class: "what", text: (one) => one.repository },
  { title: "Requests", number: true, text: (one) => count(one.requests) },
  {
    title: "Work", class: "held",
    show: (cell, one) => {
      if (!cell.firstChild) cell.append(make("span", { class: "holder" }), make("span", { class: "under" }));
      cell.children[0].replaceChildren(bar([{ number: 2, share: one.share }]));
      say(cell.children[1], took(one.work_s));
    },
  },
], (one) => one.repository);

export function showHot(snapshot) {
  const hot = snapshot.hot.filter((one) => one.requests >= 0.5);
  const most = Math.max(...hot.map((one) => one.work_s), 0.001);
  by("hot-none").hidden = hot.length > 0;
  by("hot-table").hidden = !hot.length;
  hotTable.show(hot.map((one) => ({ ...one, share: one.work_s / most })));
}
