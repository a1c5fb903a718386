// Repositories by name: a page at a time, each size asked for when its row is there.

import { by, say, Table } from "./dom.js";
import { bytes, count, plural } from "./format.js";

const DAY = new Intl.DateTimeFormat("en-GB", { year: "numeric", month: "short", day: "numeric" });
const LOOKS_MAX = 50; // for one page: the server looks through 20,000 names each time

const table = new Table(by("list"), [
  { title: "Repository", class: "what", text: (row) => row.name },
  { title: "HEAD", class: "what", text: (row) => row.head.replace(/^refs\/heads\//, "") || "–" },
  { title: "Made", text: (row) => `${DAY.format(row.created_ms)}${row.is_fork ? ", a fork" : ""}` },
  { title: "Refs", number: true, text: (row) => (row.size ? count(row.size.refs) : "…") },
  { title: "Objects", number: true, text: (row) => (row.size ? count(row.size.objects) : "…") },
  { title: "Stored, with forks", number: true, text: (row) => (row.failed ? "cannot be read" : row.size ? bytes(row.size.stored_bytes + row.size.waiting_bytes) : "…") },
], (row) => row.name);

let words = "";
let pages = [""]; // behind which name each page up to this one begins
let asked = 0;
let shown = false;

async function ask(path, parameters) {
  const answer = await fetch(`${path}?${new URLSearchParams(parameters)}`, { credentials: "same-origin" });
  if (!answer.ok) throw new Error((await answer.text()).trim());
  return answer.json();
}

/** Return the next page that has a row, or the last one, or one of none after so many looks. */
async function askOn(after, mine) {
  let page;
  for (let looks = 0; looks < LOOKS_MAX; looks += 1) {
    page = await ask("/repositories", { words, after });
    if (mine !== asked || page.rows.length || !page.after) break;
    after = page.after;
  }
  return page;
}

async function load() {
  asked += 1;
  const mine = asked;
  say(by("list-words"), "…");
  let page;
  try {
    page = await askOn(pages[pages.length - 1], mine);
  } catch (error) {
    if (mine !== asked) return;
    shown = false;
    say(by("list-words"), `The list did not come: ${error.message}`);
    return;
  }
  if (mine !== asked) return;
  shown = true;
  table.show(page.rows);
  by("list").hidden = !page.rows.length;
  by("before").disabled = pages.length < 2;
  by("next").disabled = !page.after;
  by("next").dataset.after = page.after;
  say(by("list-words"), sum(page));
  await measure(page.rows, mine);
}

function sum(page) {
  const found = page.rows.length ? `${plural(page.rows.length, "repository").replace("repositorys", "repositories")} on page ${pages.length}` : "";
  if (page.rows.length) return found;
  if (page.after) return "None among the names looked through so far; Next looks further.";
  return words ? "No name contains that." : "No repository yet: shardgit repo import NAME SOURCE makes one.";
}

/** Ask for sizes one after another, as long as the page is the one that is shown. */
async function measure(rows, mine) {
  for (const row of rows) {
    try {
      row.size = await ask("/size", { name: row.name });
    } catch {
      row.failed = true;
    }
    if (mine !== asked) return;
    table.show(rows);
  }
}

/** Make the list work; ``refresh`` asks anew when the server is another one, or had none to ask. */
export function begin() {
  by("search").addEventListener("submit", (event) => {
    event.preventDefault();
    words = by("words").value.trim();
    pages = [""];
    load();
  });
  by("next").addEventListener("click", () => {
    pages.push(by("next").dataset.after);
    load();
  });
  by("before").addEventListener("click", () => {
    pages.pop();
    load();
  });
  load();
}

export function refresh(always) {
  if (always || !shown) load();
}
