// The console: events of the server into the page, and the switch between light and dark.

import { Chart } from "./chart.js";
import { by, say } from "./dom.js";
import { span } from "./format.js";
import { announce, showHealth, showHot, showMethods, showOperations, showShards, showSlow, showTiles } from "./panels.js";
import { install } from "./patterns.js";
import { begin, refresh } from "./repositories.js";
import { Stream } from "./stream.js";

const THEMES = { system: "light", light: "dark", dark: "system" };

function beginTheme() {
  const button = by("theme");
  const now = () => document.documentElement.dataset.theme ?? "system";
  say(button, `Theme: ${now()}`);
  button.addEventListener("click", () => {
    const next = THEMES[now()];
    if (next === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = next;
    try {
      localStorage.setItem("theme", next);
    } catch {
      // a browser that keeps nothing
    }
    say(button, `Theme: ${next}`);
  });
}

install();
beginTheme();
const chart = new Chart();
let server = null;
let showing = false;

new Stream("/events", {
  history: (points) => chart.add(points),
  now: (snapshot) => {
    if (server !== null && snapshot.server !== server) refresh(true);
    server = snapshot.server;
    if (snapshot.traffic.point) chart.add([snapshot.traffic.point]);
    showHealth(snapshot.health, snapshot);
    showTiles(snapshot);
    showMethods(snapshot.traffic);
    showShards(snapshot);
    showOperations(snapshot);
    showSlow(snapshot);
    showHot(snapshot);
    if (snapshot.health.serving) refresh(false);
    document.body.dataset.seen = String(Number(document.body.dataset.seen ?? 0) + 1);
  },
  lost: (since) => {
    say(by("lost-words"), `The connection is lost since ${span((Date.now() - since) / 1000)}. What is shown is from before; it comes back by itself.`);
    if (!showing) {
      showing = true;
      by("lost").hidden = false;
      document.body.dataset.lost = "yes";
      announce("The connection to the server is lost.");
    }
  },
  found: () => {
    showing = false;
    by("lost").hidden = true;
    delete document.body.dataset.lost;
    announce("The connection is back.");
  },
});
begin();
