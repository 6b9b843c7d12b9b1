"use strict";
/* Asks the node, keeps the page at what the address says, and the newest blocks new. */

const POLL_MS = 2000;
const PAGE = 20;
const byId = (id) => document.getElementById(id);
const state = { height: -1, drawn: 0, failures: 0, polled: false };

/** A refusal of the API, by name. */
class Refused extends Error {
  constructor(problem, status) {
    super(problem.detail || `the node answered ${status}`);
    this.code = problem.code || "";
  }
}

async function ask(path) {
  const answer = await fetch(path, { cache: "no-store" });
  if (answer.ok) return answer.json();
  throw new Refused(await answer.json().catch(() => ({})), answer.status);
}

function tell(text) {
  byId("message").textContent = text;
  byId("message").hidden = !text;
}

/** A button that fetches a proof as a file, or says why there is none. */
function download(text, path, name) {
  const button = make("button", { type: "button", onclick: async () => {
    button.disabled = true;
    try {
      const answer = await fetch(`${path}?format=binary`, { cache: "no-store" });
      if (!answer.ok) throw new Refused(await answer.json().catch(() => ({})), answer.status);
      const url = URL.createObjectURL(await answer.blob());
      make("a", { href: url, download: name }).click();
      setTimeout(() => URL.revokeObjectURL(url), 1000);
      tell("");
    } catch (error) {
      tell(error.code === "NOT_PROVABLE" ? `Not provable yet: ${error.message}` : error.message);
    }
    button.disabled = false;
  } }, text);
  return button;
}

async function home(query) {
  const [status, page, list, epoch] = await Promise.all([ask("/status"),
    ask(`/blocks?limit=${PAGE}${query}`), ask("/validators"), ask("/epochs/current")]);
  return { two: true, elements: views.home(status, page, list, epoch) };
}

const pages = {
  "": () => home(""),
  from: (height) => home(`&from=${height}`),
  async block(height) {
    return { elements: views.block(await ask(`/blocks/${height}`)) };
  },
  async tx(txid) {
    return { elements: views.transaction(await ask(`/transactions/${txid}`), download) };
  },
  async address(id) {
    const [account, list] = await Promise.all([ask(`/accounts/${id}`), ask("/validators")]);
    const seat = list.validators.find((one) => one.id === id);
    return { elements: views.address(account, seat || account.validator, download) };
  },
  async validators() {
    const [status, list, epoch] = await Promise.all(
      [ask("/status"), ask("/validators"), ask("/epochs/current")]);
    const peers = status.node ? await ask("/peers") : null;
    return { elements: views.validators(list, epoch, peers) };
  },
  async evidence() {
    return { elements: views.evidence(await ask("/evidence")) };
  },
};
/** Pages that are drawn again when the chain has grown. */
const LIVE = new Set(["", "validators", "evidence"]);

function place() {
  const [name = "", argument = ""] = location.hash.replace(/^#\/?/, "").split("/");
  return { name: Object.hasOwn(pages, name) ? name : "", argument: encodeURIComponent(argument) };
}

async function draw({ again = false } = {}) {
  const { name, argument } = place();
  const turn = ++state.drawn;
  try {
    const { elements, two } = await pages[name](argument);
    if (turn !== state.drawn) return;
    byId("main").className = two ? "two" : "";
    byId("main").replaceChildren(...elements);
    tell("");
  } catch (error) {
    if (turn !== state.drawn) return;
    if (!again) byId("main").replaceChildren();
    tell(error instanceof Refused ? error.message : "The node does not answer.");
  }
  for (const item of document.querySelectorAll("nav a")) {
    if (item.dataset.page === name) item.setAttribute("aria-current", "page");
    else item.removeAttribute("aria-current");
  }
  if (!again) byId("main").focus({ preventScroll: true });
  document.body.dataset.ready = "yes";
}

async function poll() {
  try {
    const status = await ask("/status");
    state.failures = 0;
    byId("market").textContent = status.market;
    document.title = `${status.market} · block ${status.height} · Hearthgrid`;
    const live = byId("live");
    const cut = status.node && !status.node.connected;
    live.dataset.state = cut ? "quiet" : "ok";
    live.textContent = cut ? "no broker" : status.node ? "live" : "folder";
    const grown = state.height !== -1 && status.height !== state.height;
    state.height = status.height;
    if (grown && LIVE.has(place().name) && !document.hidden) await draw({ again: true });
  } catch {
    state.failures += 1;
    byId("live").dataset.state = "down";
    byId("live").textContent = "no answer";
  }
  setTimeout(poll, Math.min(POLL_MS * 2 ** Math.min(state.failures, 3), 15000));
}

function find(event) {
  event.preventDefault();
  const text = byId("query").value.trim().toLowerCase().replaceAll(",", "");
  let target = "";
  if (/^[0-9]{1,15}$/.test(text)) target = `#/block/${Number(text)}`;
  else if (/^[0-9a-f]{64}$/.test(text)) target = `#/tx/${text}`;
  else if (/^hg1[a-z2-7]{32}$/.test(text)) target = `#/address/${text}`;
  if (!target) {
    tell("Give a height, a transaction (64 hex digits) or an address (hg1…, 35 letters).");
    return;
  }
  byId("query").value = "";
  if (location.hash === target) draw();
  else location.hash = target;
}

function switchTheme() {
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const now = document.documentElement.dataset.theme || (dark ? "dark" : "light");
  document.documentElement.dataset.theme = now === "dark" ? "light" : "dark";
  try { localStorage.setItem("theme", document.documentElement.dataset.theme); } catch { /* not kept */ }
}

function begin() {
  try {
    const kept = localStorage.getItem("theme");
    if (kept === "dark" || kept === "light") document.documentElement.dataset.theme = kept;
  } catch { /* the system's choice holds */ }
  byId("theme").addEventListener("click", switchTheme);
  byId("search").addEventListener("submit", find);
  addEventListener("hashchange", () => draw());
  ask("/genesis").then((genesis) => { show.slotLengthS = genesis.slotLengthS; }).catch(() => {})
    .finally(() => { draw(); poll(); });
}

begin();
