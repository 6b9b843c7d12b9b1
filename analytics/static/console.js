"use strict";
/* Polls what changed, keeps it by key, and redraws only what that touches. */

const POLL_MS = 1000;
const REDRAW_MS = 2000;
const KEYS = { slots: "slot", trades: "seq", auctions: "auction", blocks: "height",
  validators: "id", homes: "id" };
const KEEP = { trades: 60, blocks: 1500 };
const TOUCHES = { slots: ["power", "price"], blocks: ["blocks", "leaders"],
  validators: ["leaders", "blocks"] };

const MARKET_WORDS = { double: "auction", auction: "flexibility", offer: "order book",
  escrow: "escrow", schedule: "schedule" };

const tables = {};
let cursor = "";
let dirty = new Set();
let drawnMs = 0;
let failures = 0;
let names = {};

const state = {
  market: null, day: { startMs: 0, endMs: 1 }, nowMs: 0,
  rows: (name) => [...tables[name].values()]
    .filter((row) => name !== "slots"
      || (row.startMs >= state.day.startMs && row.startMs < state.day.endMs))
    .sort((a, b) => (a[KEYS[name]] < b[KEYS[name]] ? -1 : 1)),
  validators: () => [...tables.validators.values()]
    .sort((a, b) => ((a.controller || a.id) < (b.controller || b.id) ? -1 : 1))
    .map((row) => ({ ...row, label: label(row) })),
};

function label(row) {
  const name = row.controller || "";
  return name && !name.startsWith("hg1") ? name : format.short(row.id);
}

function reset() {
  for (const name of Object.keys(KEYS)) tables[name] = new Map();
}

function merge(reply) {
  if (reply.full) {
    reset();
    state.market = reply.market;
    names = reply.market.markets;
    dirty = new Set(Object.keys(charts));
  }
  Object.assign(state.market, reply.tariff);
  const newDay = reply.day.startMs !== state.day.startMs;
  state.day = reply.day;
  state.nowMs = reply.nowMs;
  if (newDay) dirty = new Set(Object.keys(charts));
  for (const [name, key] of Object.entries(KEYS)) {
    for (const row of reply[name]) tables[name].set(row[key], row);
    if (reply[name].length) (TOUCHES[name] || []).forEach((chart) => dirty.add(chart));
    const surplus = tables[name].size - (KEEP[name] || Infinity);
    if (surplus > 0) [...tables[name].keys()].sort((a, b) => a - b).slice(0, surplus)
      .forEach((old) => tables[name].delete(old));
  }
  cursor = reply.cursor;
}

const byId = (id) => document.getElementById(id);

function say(id, text, unit) {
  const element = byId(id);
  const wanted = unit ? `${text} ${unit}` : text;
  if (element.dataset.text === wanted) return;
  element.dataset.text = wanted;
  element.textContent = text;
  if (unit) {
    const small = document.createElement("small");
    small.textContent = unit;
    element.append(small);
  }
}

function showHeader(reply) {
  say("time", format.clock(reply.nowMs));
  say("date", format.date(reply.nowMs));
  byId("time").dateTime = new Date(reply.nowMs).toISOString();
  const fast = reply.speed > 1.05;
  byId("speed").hidden = !fast;
  if (fast) say("speed", `${Math.round(reply.speed)}× real time`);
  const span = reply.day.endMs - reply.day.startMs;
  const done = Math.min(1, Math.max(0, (reply.nowMs - reply.day.startMs) / span));
  byId("progress-fill").style.width = `${(done * 100).toFixed(2)}%`;
  byId("progress").setAttribute("aria-valuenow", Math.round(done * 100));
  showHealth(reply.health.state, reply.health.reasons);
}

function showHealth(word, reasons) {
  const words = { ok: "All well", starting: "Starting", degraded: "Degraded", down: "Down" };
  const element = byId("health");
  element.dataset.state = word;
  const text = words[word] + (reasons.length ? `: ${reasons.join(", ")}` : "");
  say("health", text);
  element.title = text;
}

function showTiles(tiles) {
  say("traded", format.kwh(tiles.tradedWh), "kWh");
  say("traded-note", `and ${format.kwh(tiles.flexWh)} kWh of flexibility`);
  byId("traded-note").title = Object.entries(tiles.markets).map(([kind, sums]) =>
    `${names[kind]}: ${format.kwh(sums.energyWh)} kWh`).join("\n");
  const share = (value) => (value === null ? "–" : format.percent(value));
  say("sufficiency", share(tiles.selfSufficiency), tiles.selfSufficiency === null ? "" : "%");
  say("sufficiency-note", `self-consumption ${share(tiles.selfConsumption)} %`);
  if (tiles.price) {
    say("price", format.cents(tiles.price.priceUc), "ct/kWh");
    say("price-note", `slot ${format.clock(tiles.price.startMs)}, `
      + format.energy(tiles.price.tradedWh));
  } else {
    say("price", "–");
    say("price-note", "no trade yet");
  }
  say("height", format.count(tiles.height));
  say("height-note", `${format.count(tiles.txs)} transactions`);
  const { p50, p95, n } = tiles.finality;
  say("finality", p50 === null ? "–" : format.count(p50), p50 === null ? "" : "ms");
  say("finality-note", p95 === null ? "no block yet" : `95th percentile ${format.count(p95)} ms`);
  byId("finality-note").title = `proposal to finality in real time, the latest ${n} blocks`;
  say("refused", format.count(tiles.refused.total));
  const reasons = tiles.refused.reasons.map(([name, count]) => `${format.reason(name)} ${count}`);
  say("refused-note", reasons.length ? reasons.join(", ") : "no message refused");
  byId("refused-note").title = reasons.join("\n");
  say("homes-note", tiles.homes ? `kW, ${tiles.homesOnline} of ${tiles.homes} online` : "");
}

/** Fill a table body; a cell is text, [text, class] or an element. */
function fill(id, rows, emptyText, columns) {
  const made = rows.map((cells) => {
    const line = document.createElement("tr");
    for (const cell of cells) {
      const place = line.insertCell();
      const [content, kind] = Array.isArray(cell) ? cell : [cell, ""];
      if (kind) place.className = kind;
      place.append(content);
    }
    return line;
  });
  if (!made.length) {
    const line = document.createElement("tr");
    line.className = "empty";
    const place = line.insertCell();
    place.colSpan = columns;
    place.textContent = emptyText;
    made.push(line);
  }
  byId(id).replaceChildren(...made);
}

function homeCell(row) {
  const cell = document.createElement("span");
  const dot = document.createElement("span");
  const lost = row.lost || [];
  dot.className = "dot" + (row.online ? (lost.length ? " warn" : "") : " off");
  dot.title = row.online ? (lost.length ? `lost: ${lost.join(", ")}` : "online") : "offline";
  cell.append(dot, format.short(row.id));
  cell.title = row.id;
  return cell;
}

function batteryCell(row) {
  if (row.socPermille === undefined || row.socPermille < 0) return "–";
  const cell = document.createElement("span");
  const bar = document.createElement("meter-bar");
  const level = document.createElement("i");
  level.style.width = `${row.socPermille / 10}%`;
  bar.append(level);
  cell.append(bar, `${format.percent(row.socPermille)} %`);
  return cell;
}

function showTables(reply) {
  if (reply.full || reply.homes.length) {
    const homes = [...tables.homes.values()]
      .sort((a, b) => (a.id < b.id ? -1 : 1));
    const power = (row, key) => [row.online && row.shares && row[key] !== undefined
      ? format.kw(row[key]) : "–", "n"];
    const last = (row) => (row.online && !row.shares ? "not shared" : batteryCell(row));
    fill("homes", homes.map((row) => [homeCell(row), power(row, "loadW"), power(row, "pvW"),
      power(row, "gridW"), [last(row), "soc"]]), "No home has reported yet.", 5);
  }
  if (reply.full || reply.trades.length) {
    const trades = state.rows("trades").reverse();
    fill("trades", trades.map((row) => {
      const address = document.createElement("span");
      address.textContent = format.short(row.address);
      address.title = row.address;
      const side = row.kind === "market" ? row.side : `${row.side}, ${MARKET_WORDS[row.kind]}`;
      return [format.clock(row.startMs), [address, "address"], [side, row.side],
        [format.count(row.energyWh), "n"], [format.cents(row.priceUc), "n"]];
    }), "The first slot has not cleared yet.", 5);
  }
  if (reply.full || reply.auctions.length) {
    const auctions = [...tables.auctions.values()].sort((a, b) => b.slot - a.slot);
    fill("auctions", auctions.map((row) => [format.clock(row.startMs), row.template,
      [`${format.count(row.energyWh)} Wh`, "n"],
      [row.status === "open" ? "open" : `${format.count(row.boughtWh)} Wh`, "n"],
      [row.meanUc === undefined ? "–" : format.cents(row.meanUc), "n"]]),
    "The aggregator has not asked for flexibility.", 5);
  }
}

function redraw(force) {
  const now = performance.now();
  if (document.hidden || !state.market || (!force && now - drawnMs < REDRAW_MS)) return;
  drawnMs = now;
  for (const name of dirty) draw(name, state);
  dirty.clear();
}

async function poll() {
  try {
    const answer = await fetch(`/api/live?since=${encodeURIComponent(cursor)}`);
    if (!answer.ok) throw new Error(`HTTP ${answer.status}`);
    const reply = await answer.json();
    merge(reply);
    showHeader(reply);
    showTiles(reply.tiles);
    showTables(reply);
    redraw(reply.full);
    failures = 0;
    document.body.dataset.ready = "yes";
  } catch (error) {
    failures += 1;
    if (failures > 2) showHealth("down", ["this page gets no answer"]);
    if (!(error instanceof TypeError)) throw error;
  } finally {
    setTimeout(poll, document.hidden ? 5 * POLL_MS : POLL_MS);
  }
}

function redrawAll() {
  dirty = new Set(Object.keys(charts));
  redraw(true);
}

reset();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redrawAll);
document.addEventListener("visibilitychange", () => { if (!document.hidden) redrawAll(); });
poll();
