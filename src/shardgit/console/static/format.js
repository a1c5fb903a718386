// Numbers as people read them.

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];

/** 1536 -> "1.5 KiB" */
export function bytes(count) {
  if (count === null || count === undefined) return "–";
  let size = count;
  let unit = 0;
  while (size >= 1000 && unit < UNITS.length - 1) {
    size /= 1024;
    unit += 1;
  }
  return `${unit === 0 || size >= 100 ? Math.round(size) : size.toFixed(1)} ${UNITS[unit]}`;
}

/** 1234567 -> "1,234,567" */
export const count = (number) => (number === null || number === undefined ? "–" : Math.round(number).toLocaleString("en"));

/** A rate: "0", "0.25", "3.2", "1,234" */
export function rate(number) {
  if (!number) return "0";
  if (number < 1) return number.toFixed(2);
  return number < 100 ? String(Number(number.toFixed(1))) : count(number);
}

/** A time that a request took: "3 ms", "1.2 s", "4 min" */
export function took(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 0.001) return "< 1 ms";
  if (seconds < 0.01) return `${Number((seconds * 1000).toFixed(1))} ms`;
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 100) return `${Number(seconds.toFixed(1))} s`;
  return span(seconds);
}

/** How long something lasts: "12 s", "3 min", "5 h 20 min", "3 days" */
export function span(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 100) return `${whole} s`;
  const minutes = Math.round(whole / 60);
  if (minutes < 100) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  if (hours < 48) return minutes % 60 ? `${hours} h ${minutes % 60} min` : `${hours} h`;
  return `${Math.round(hours / 24)} days`;
}

/** How long ago, by the server's clock. */
export const ago = (then, now) => `${span((now - then) / 1000)} ago`;

/** 0.256 -> "25.6 %" */
export const percent = (share) => `${(share * 100).toFixed(share > 0.995 || share === 0 ? 0 : 1)} %`;

/** "1 shard", "3 shards" */
export const plural = (number, noun) => `${count(number)} ${noun}${number === 1 ? "" : "s"}`;
