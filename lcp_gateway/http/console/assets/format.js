// Amounts, times and names as text.
const WHOLE = new Intl.NumberFormat("en-US");
const DAY = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short" });
const DATE = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short", year: "numeric" });
const CLOCK = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const SHORT_CLOCK = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit" });

export const whole = (number) => WHOLE.format(number);

/** Split msat into its sign, whole sats and the three digits after them; exact also above 2^53 when given as text. */
export function satParts(msat) {
  let value = BigInt(msat);
  const sign = value < 0n ? "\u2212" : "";
  if (value < 0n) value = -value;
  return { sign, sats: WHOLE.format(value / 1000n), rest: String(value % 1000n).padStart(3, "0") };
}

/** msat as sats, with the digits after the point only where there are any: "1,234" or "2.746". */
export function sat(msat) {
  const { sign, sats, rest } = satParts(msat);
  const digits = rest.replace(/0+$/, "");
  return `${sign}${sats}${digits ? `.${digits}` : ""}`;
}

/** Read an amount in sats that a person typed, "1,234.5"; return msat, or null. */
export function readSat(text) {
  const found = /^(\d[\d,_ ]*)(?:\.(\d{1,3}))?$/.exec(text.trim());
  if (!found) return null;
  const msat = Number(found[1].replace(/[,_ ]/g, "")) * 1000 + Number((found[2] ?? "").padEnd(3, "0"));
  return Number.isSafeInteger(msat) ? msat : null;
}

/** A time of the API (Unix seconds or ISO 8601) as a Date, or null. */
export function toDate(value) {
  if (value === null || value === undefined || value === "") return null;
  const date = new Date(typeof value === "number" ? value * 1000 : value);
  return Number.isNaN(date.getTime()) ? null : date;
}

/** "30 Nov, 14:03:07", with the year where it is another one. */
export function localTime(date, { seconds = true } = {}) {
  const day = (date.getFullYear() === new Date().getFullYear() ? DAY : DATE).format(date);
  return `${day}, ${(seconds ? CLOCK : SHORT_CLOCK).format(date)}`;
}

export const localDay = (date) => DAY.format(date);
export const localClock = (date) => SHORT_CLOCK.format(date);
export const utcTime = (date) => `${date.toISOString().slice(0, 19).replace("T", " ")} UTC`;

/** "in 3 min", "2 h ago". */
export function relative(date, now = Date.now()) {
  const seconds = Math.round((date.getTime() - now) / 1000);
  const size = Math.abs(seconds);
  const [count, unit] =
    size < 60 ? [size, "s"] : size < 3600 ? [Math.round(size / 60), "min"] : size < 86_400 ? [Math.round(size / 3600), "h"] : [Math.round(size / 86_400), "d"];
  if (size < 5) return "now";
  return seconds > 0 ? `in ${count} ${unit}` : `${count} ${unit} ago`;
}

/** Seconds as "0.42 s", "12 s", "3 min". */
export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "";
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 120) return `${Math.round(seconds)} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  return `${Math.round(seconds / 3600)} h`;
}

/** "12:34" for a countdown. */
export function countdown(seconds) {
  const left = Math.max(0, Math.ceil(seconds));
  return `${Math.floor(left / 60)}:${String(left % 60).padStart(2, "0")}`;
}

/** The two ends of a long id. */
export function shortId(id, head = 8, tail = 4) {
  return id.length <= head + tail + 1 ? id : `${id.slice(0, head)}…${id.slice(-tail)}`;
}

/** Tokens as "128k", "1M". */
export function tokens(count) {
  if (!count) return "";
  if (count >= 1_000_000) return `${Math.round(count / 100_000) / 10}M`;
  return count >= 1000 ? `${Math.round(count / 1000)}k` : String(count);
}

export const plural = (count, one, many = `${one}s`) => `${whole(count)} ${count === 1 ? one : many}`;
