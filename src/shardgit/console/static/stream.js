// The events of the server: what comes, and whether anything comes.

const SILENT_MS = 15000; // the server sends something every 5 s at least
const AGAIN_MS = [1000, 2000, 4000, 8000];

/** Listens until the page goes; what was lost comes back by itself. */
export class Stream {
  constructor(url, { history, now, lost, found }) {
    this.url = url;
    this.on = { history, now, lost, found };
    this.heard = performance.now();
    this.lostAt = null;
    this.tries = 0;
    this.#open();
    setInterval(() => this.#look(), 1000);
    window.addEventListener("online", () => this.#again(0));
    document.addEventListener("visibilitychange", () => {
      if (!document.hidden && this.lostAt !== null) this.#again(0);
    });
  }

  #open() {
    clearTimeout(this.timer);
    this.timer = null;
    this.source?.close();
    const source = new EventSource(this.url);
    this.source = source;
    this.heard = performance.now();
    const take = (name) => source.addEventListener(name, (event) => {
      this.#hear();
      this.on[name](JSON.parse(event.data));
    });
    take("history");
    take("now");
    source.onopen = () => { this.heard = performance.now(); };
    source.onerror = () => {
      this.#lose();
      // By itself a browser tries again after a cut, not after a refusal.
      if (source.readyState === EventSource.CLOSED) this.#again(AGAIN_MS[Math.min(this.tries, AGAIN_MS.length - 1)]);
    };
  }

  #again(wait) {
    if (this.timer !== null && wait > 0) return;
    this.tries += 1;
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.#open(), wait);
  }

  #hear() {
    this.heard = performance.now();
    this.tries = 0;
    if (this.lostAt !== null) {
      this.lostAt = null;
      this.on.found();
    }
  }

  #lose() {
    if (this.lostAt === null) this.lostAt = Date.now();
    this.on.lost(this.lostAt);
  }

  #look() {
    if (this.lostAt !== null) this.on.lost(this.lostAt);
    if (performance.now() - this.heard > SILENT_MS && this.timer === null && !document.hidden) {
      this.#lose();
      this.#again(0);
    }
  }
}
