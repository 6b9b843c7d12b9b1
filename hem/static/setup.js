"use strict";
// The form, its checks, and the two buttons. Text from outside becomes text, never markup.

const at = (id) => document.getElementById(id);
const DETAILS = new Set(["port", "baud", "parity", "stopbits", "device_id"]);
const GROUPS = [
  ["SunSpec", (p) => p.id === "sunspec"],
  ["Meters", (p) => p.capabilities[0] === "grid" && (p.one_of || p.capabilities.length === 1)],
  ["PV inverters", (p) => p.capabilities.length === 1 && p.capabilities[0] === "pv"],
  ["Batteries", (p) => p.capabilities.length === 1 && p.capabilities[0] === "battery"],
  ["Hybrid inverters and systems", () => true],
];
let facts = { products: [], devices: [], csrf: "" };
let chosen = null;

function make(tag, properties = {}, ...inside) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...inside);
  return element;
}

function say(text, level = "") {
  at("message").textContent = text;
  at("message").dataset.level = level;
}

async function ask(path, body) {
  const options = body && {
    method: "POST",
    headers: { "Content-Type": "application/json", "X-CSRF-Token": facts.csrf },
    body: JSON.stringify(body),
  };
  const answer = await fetch(path, { credentials: "same-origin", ...options });
  return { status: answer.status, ...(await answer.json()) };
}

// --- The form -----------------------------------------------------------------------------------

function control(field) {
  const id = `f-${field.name}`;
  const described = { id, name: field.name, "aria-describedby": `h-${field.name} w-${field.name}` };
  if (field.type === "choice" || field.type === "bool") {
    const choices = field.type === "bool" ? [true, false] : field.choices;
    const options = choices.map((one) => make("option", { value: String(one), selected: one === field.default }, String(one)));
    if (field.default === null) options.unshift(make("option", { value: "" }, "choose"));
    return make("select", described, ...options);
  }
  const input = make("input", { ...described, autocomplete: "off", spellcheck: false });
  if (field.type === "text") return input;
  input.inputMode = field.type === "int" && field.min >= 0 ? "numeric" : "text";
  input.placeholder = field.default === null ? "" : String(field.default);
  return input;
}

function drawn(field) {
  const help = [field.help, range(field)].filter(Boolean).join(". ");
  const notes = [
    make("p", { className: "help", id: `h-${field.name}` }, help),
    make("p", { className: "wrong", id: `w-${field.name}`, hidden: true }),
  ];
  if (field.type === "many") {
    const boxes = field.choices.map((one) => make("label", { className: "check" },
      make("input", { type: "checkbox", name: field.name, value: one }), one));
    return make("fieldset", { className: "field wide", id: `b-${field.name}` },
      make("legend", {}, field.label), ...boxes, ...notes);
  }
  const unit = field.unit ? make("span", { className: "unit" }, ` [${field.unit}]`) : "";
  const star = field.required ? make("span", { className: "unit" }, " required") : "";
  return make("div", { className: "field", id: `b-${field.name}` },
    make("label", { htmlFor: `f-${field.name}` }, field.label, unit, star), control(field), ...notes);
}

function range(field) {
  if (field.min === null || field.max === null || DETAILS.has(field.name)) return "";
  const most = field.max < 1e6 ? `${field.min} to ${field.max}` : `from ${field.min}`;
  return `${most}${field.unit ? ` ${field.unit}` : ""}`;
}

function choose() {
  const kept = Object.fromEntries(["name", "host", "path"].map((name) => [name, at(`f-${name}`)?.value]));
  chosen = facts.products.find((one) => one.id === at("product").value);
  at("fields").replaceChildren(...chosen.fields.filter((f) => !DETAILS.has(f.name)).map(drawn));
  at("details").replaceChildren(...chosen.fields.filter((f) => DETAILS.has(f.name)).map(drawn));
  const role = chosen.capabilities.join(chosen.one_of ? " or " : ", ");
  const about = `${role}${chosen.controllable ? ", its battery can be commanded" : ""}. ${chosen.notes}`;
  at("about").textContent = about;
  for (const [name, value] of Object.entries(kept)) if (value) at(`f-${name}`).value = value;
  show();
  say("");
}

function asked() {
  const connection = at("f-connection").value;
  return chosen.fields.filter((f) => !f.connections.length || f.connections.includes(connection));
}

function show() {
  const shown = new Set(asked().map((f) => f.name));
  for (const field of chosen.fields) at(`b-${field.name}`).hidden = !shown.has(field.name);
}

function answers() {
  const given = {};
  for (const field of asked()) {
    if (field.type === "many") {
      given[field.name] = [...at(`b-${field.name}`).querySelectorAll(":checked")].map((box) => box.value);
    } else {
      given[field.name] = at(`f-${field.name}`).value.trim();
    }
  }
  return given;
}

function wrongOf(field, given) {
  if (field.type === "many") return field.name === "use" && chosen.one_of && given.length > 1 ? "is one place only" : "";
  if (given === "") return field.required ? "has to be given" : "";
  if (field.type === "text") return new RegExp(`^(?:${field.pattern})$`).test(given) ? "" : "does not look like one";
  if (field.type !== "int" && field.type !== "float") return "";
  const value = Number(given);
  const kind = field.type === "int" ? "a whole number" : "a number";
  if (!Number.isFinite(value) || (field.type === "int" && !/^[+-]?\d+$/.test(given))) return `is ${kind}`;
  if (value < field.min || value > field.max) return `lies between ${field.min} and ${field.max} ${field.unit}`.trim();
  return "";
}

function mark(wrong) {
  for (const field of chosen.fields) {
    const text = wrong[field.name] || "";
    const note = at(`w-${field.name}`);
    note.textContent = text && `${field.label} ${text}`;
    note.hidden = !text;
    at(`f-${field.name}`)?.setAttribute("aria-invalid", String(Boolean(text)));
  }
  const first = chosen.fields.find((field) => wrong[field.name]);
  if (!first) return;
  if (DETAILS.has(first.name)) at("more").open = true;
  (at(`f-${first.name}`) || at(`b-${first.name}`).querySelector("input")).focus();
}

function complete() {
  const given = answers();
  const wrong = {};
  for (const field of asked()) {
    const text = wrongOf(field, given[field.name]);
    if (text) wrong[field.name] = text;
  }
  mark(wrong);
  if (!Object.keys(wrong).length) return { product: chosen.id, answers: given };
  say("Some fields are not right yet.", "bad");
  return null;
}

// --- The buttons --------------------------------------------------------------------------------

async function send(path, waiting, done) {
  const body = complete();
  if (!body) return;
  say(waiting);
  for (const id of ["test", "add"]) at(id).disabled = true;
  try {
    const answer = await ask(path, body);
    if (answer.wrong) {
      mark(answer.wrong);
      say(Object.entries(answer.wrong).map(([name, text]) => `${name} ${text}`).join("; "), "bad");
    } else if (answer.status !== 200) say(answer.error, "bad");
    else await done(answer);
  } catch {
    say("The page's server does not answer; is `hem setup` still running?", "bad");
  } finally {
    for (const id of ["test", "add"]) at(id).disabled = false;
  }
}

function result(answer) {
  const rows = answer.values.map((one) => make("tr", {}, make("th", { scope: "row" }, one.label),
    make("td", { className: "n" }, one.text)));
  for (const [name, text] of Object.entries(answer.nameplate)) {
    if (text) rows.push(make("tr", {}, make("th", { scope: "row" }, name), make("td", { className: "n" }, text)));
  }
  const checks = answer.checks.map((one) => make("li", { "data-level": one.level },
    make("b", {}, one.level), `${one.name}: ${one.text}`));
  at("result").replaceChildren(make("table", {}, make("tbody", {}, ...rows)), make("ul", { className: "checks" }, ...checks));
  say(answer.ok ? "The device answers as it ought to." : "The device did not pass; see the checks.", answer.ok ? "good" : "bad");
}

function list() {
  at("devices").replaceChildren(...facts.devices.map((one) => make("li", {}, `${one.name}: ${one.kind}`)));
}

async function load() {
  const answer = await ask("/api/form");
  if (answer.status !== 200) return say(answer.error, "bad");
  facts = answer;
  at("home").textContent = facts.home;
  at("file").textContent = facts.file;
  list();
  const left = new Set(facts.products);
  for (const [title, fits] of GROUPS) {
    const group = make("optgroup", { label: title });
    for (const one of [...left].filter(fits)) {
      left.delete(one);
      group.append(make("option", { value: one.id }, `${one.vendor}: ${one.products.join(", ")}`));
    }
    at("product").append(group);
  }
  choose();
  document.body.dataset.ready = "yes";
}

at("product").addEventListener("change", choose);
at("form").addEventListener("change", (event) => {
  if (event.target.id === "f-connection") show();
});
at("test").addEventListener("click", () => send("/api/test", "Reading the device…", result));
at("form").addEventListener("submit", (event) => {
  event.preventDefault();
  send("/api/add", "Adding…", async (answer) => {
    facts.devices.push({ name: answer.added, kind: chosen.id });
    list();
    at("f-name").value = "";
    say(`Added ${answer.added}; the file as it was is ${answer.backup}. Restart the gateway to use it.`, "good");
  });
});
load();
