"use strict";
/* Numbers and times as people read them. Everything reaches the page as text, never as HTML. */
const format = {
  kwh: (wh) => (wh / 1000).toLocaleString("en", {
    minimumFractionDigits: 1, maximumFractionDigits: 1 }),
  energy: (wh) => (wh < 1000 ? `${wh} Wh` : `${format.kwh(wh)} kWh`),
  kw: (w) => (w / 1000).toLocaleString("en", {
    minimumFractionDigits: 2, maximumFractionDigits: 2 }).replace("-", "−"),
  cents: (uc) => (uc / 10000).toFixed(1),
  percent: (permille) => (permille / 10).toFixed(0),
  count: (n) => n.toLocaleString("en"),
  /** UTC hour and minute of market time. */
  clock: (ms) => new Date(ms).toISOString().slice(11, 16),
  date: (ms) => new Date(ms).toLocaleDateString("en-GB", {
    weekday: "short", day: "numeric", month: "short", year: "numeric", timeZone: "UTC" }),
  /** Plotly's date axis takes text without a zone. */
  axis: (ms) => new Date(ms).toISOString().slice(0, 19),
  /** An id by its first and last letters. */
  short: (id) => id.length > 14 ? id.slice(0, 8) + "…" + id.slice(-4) : id,
  reason: (name) => name.toLowerCase().replaceAll("_", " "),
};
