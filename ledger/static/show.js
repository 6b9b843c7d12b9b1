"use strict";
/* Words and elements. Everything reaches the page as text, never as HTML. */

/** An element with attributes and children (elements or text). */
function make(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "onclick") element.addEventListener("click", value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.filter((child) => child !== null && child !== undefined).map(
    (child) => (child instanceof Node ? child : document.createTextNode(String(child)))));
  return element;
}

const show = {
  slotLengthS: 900,
  count: (n) => n.toLocaleString("en"),
  time: (ms) => new Date(ms).toISOString().slice(0, 19).replace("T", " "),
  clock: (ms) => new Date(ms).toISOString().slice(11, 19),
  /** Money: µ¤ are a millionth of the market's unit. */
  money: (uc) => (uc / 1e6).toLocaleString("en", {
    minimumFractionDigits: 2, maximumFractionDigits: 6 }),
  price: (uc) => `${(uc / 10000).toLocaleString("en", { maximumFractionDigits: 4 })} ct/kWh`,
  energy: (wh) => `${wh.toLocaleString("en")} Wh`,
  slot: (slot) => `${slot} (${show.time(slot * show.slotLengthS * 1000).slice(0, 16)})`,
  /** A long word by its first and last letters. */
  short: (text) => (text.length > 18 ? `${text.slice(0, 10)}…${text.slice(-4)}` : text),
  percent: (permille) => `${(permille / 10).toFixed(1)} %`,
  many: (n, what) => `${show.count(n)} ${what}${n === 1 ? "" : "s"}`,
  /** A field's name without its unit, which stands beside the value. */
  words: (name) => camel(name).replace(/(.)(UcPerKwh|Uc|Wh|Ms|Q16)$/, "$1")
    .replace(/([a-z0-9])([A-Z])/g, "$1 $2").toLowerCase(),
  since: (ms) => (ms < 1000 ? "now" : ms < 120000 ? `${Math.round(ms / 1000)} s ago`
    : `${Math.round(ms / 60000)} min ago`),
};

const link = {
  block: (height) => make("a", { href: `#/block/${height}` }, show.count(height)),
  tx: (txid, whole) => make("a", { href: `#/tx/${txid}`, class: "mono", title: txid },
    whole ? txid : show.short(txid)),
  address: (id, whole) => make("a", { href: `#/address/${id}`, class: "mono", title: id },
    whole ? id : show.short(id)),
};

function chip(text) {
  const good = ["OK", "final", "active", "judged"].includes(text);
  const soft = ["pending", "candidate", "leaving", "open", "seal"].includes(text);
  return make("span", { class: `chip ${good ? "ok" : soft ? "warn" : "bad"}` }, text);
}

function bar(kind, permille, text) {
  const fill = make("i");
  fill.style.width = `${Math.min(100, permille / 10)}%`;
  return make("span", null, make("span", { class: `bar ${kind}`, "aria-hidden": "true" }, fill), text);
}

/** A table; columns are [heading, class]; rows are lists of cells. */
function table(columns, rows, label) {
  return make("div", { class: "scroll" }, make("table", { "aria-label": label },
    make("thead", null, make("tr", null, ...columns.map(
      ([heading, kind]) => make("th", { class: kind, scope: "col" }, heading)))),
    make("tbody", null, ...rows.map((cells) => make("tr", null, ...cells.map(
      (cell, index) => make("td", { class: columns[index][1] }, cell)))))));
}

function facts(pairs) {
  return make("dl", null, ...pairs.filter(([, value]) => value !== null && value !== undefined)
    .flatMap(([name, value]) => [make("dt", null, name), make("dd", null, value)]));
}

function panel(heading, ...children) {
  return make("section", { class: "panel" }, make("h2", null, heading), ...children);
}

function wide(element) {
  element.classList.add("wide");
  return element;
}

/** Records that meters sign have snake_case names; operations and events are camelCase. */
const camel = (name) => name.replace(/_([a-z0-9])/g, (_, letter) => letter.toUpperCase());

/** A field of an operation or event, with its unit. */
function field(name, value) {
  const last = camel(name.split(".").pop());
  if (value === null) return "none";
  if (typeof value === "number") {
    if (last.endsWith("Wh")) return show.energy(value);
    if (last.endsWith("UcPerKwh")) return show.price(value);
    if (last.endsWith("Uc")) return `${show.money(value)} ¤`;
    if (last.endsWith("Slot") || last === "slot") return show.slot(value);
    if (last.endsWith("Ms")) return show.time(value);
    if (last === "cpfQ16") return (value / 65536).toFixed(4);
    return String(value);
  }
  if (typeof value === "string") {
    if (/^hg1[a-z2-7]{32}$/.test(value)) return link.address(value);
    if (/^[0-9a-f]{64}$/.test(value) && last === "txid") return link.tx(value);
    return value.length > 46 ? make("span", { class: "mono", title: value }, show.short(value)) : value;
  }
  return typeof value === "boolean" ? (value ? "yes" : "no") : JSON.stringify(value);
}

/** An object's fields, nested ones by their path. */
function fields(object, before) {
  return Object.entries(object).flatMap(([name, value]) => {
    const path = before ? `${before}.${name}` : name;
    if (value !== null && typeof value === "object" && !Array.isArray(value)) return fields(value, path);
    return [[path.split(".").map(show.words).join(" · "), field(path, value)]];
  });
}
