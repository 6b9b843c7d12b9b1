"use strict";
/* The pages: each takes what the API answered and gives elements. */

const views = {
  home(status, page, validators, epoch) {
    return [tiles(status), blockPanel(page), make("div", { class: "column" },
      leaderPanel(validators), panel("Order of turns", make("p", null, ...turns(validators, epoch))))];
  },

  block(block) {
    const signers = block.finality
      ? block.finality.signers.flatMap((one, index) => [index ? ", " : "",
        one.id ? link.address(one.id) : `#${one.index}`])
      : ["not on this node's disk"];
    const later = block.finality && block.finality.height !== block.height
      ? [" with ", link.block(block.finality.height)] : [];
    return [
      wide(make("section", { class: "panel" },
        make("h1", null, `Block ${show.count(block.height)} `, block.seal ? chip("seal") : null),
        make("p", { class: "quiet" }, `${show.time(block.timeMs)} UTC, market time`),
        facts([
          ["Hash", make("span", { class: "mono" }, block.hash)],
          ["Parent", block.height > 1
            ? make("a", { class: "mono", href: `#/block/${block.height - 1}` }, block.parentHash)
            : make("span", { class: "mono" }, `${block.parentHash} (genesis)`)],
          ["Leader", link.address(block.proposer, true)],
          ["Epoch, view", `${block.epoch}, ${block.view}`],
          ["Final by", make("span", null, ...signers, ...later)],
          ["State after it", make("span", { class: "mono" }, block.stateRoot)],
          ["Header's state", make("span", { class: "mono" },
            `${block.headerStateRoot} (after block ${block.execHeight})`)],
        ]),
        make("div", { class: "bar-row" },
          block.height > 1 ? make("a", { href: `#/block/${block.height - 1}` }, "← older") : null,
          make("a", { href: `#/block/${block.height + 1}` }, "newer →")))),
      wide(panel(show.many(block.transactions, "transaction"),
        block.items.length ? transactionTable(block.items) : empty("No transactions."),
        block.transactions > block.items.length
          ? make("p", { class: "quiet" }, `The first ${block.items.length}; /blocks/${block.height}?offset=100 has more.`)
          : null)),
      wide(panel(show.many(block.eventCount, "event"),
        block.events.length ? eventList(block.events) : empty("No events."))),
    ];
  },

  transaction(tx, download) {
    return [
      wide(make("section", { class: "panel" },
        make("h1", { class: "mono" }, tx.txid),
        make("p", null, chip(tx.state), " ", tx.code ? chip(tx.code) : null),
        facts([
          ["Block", tx.height === null ? null
            : make("span", null, link.block(tx.height), `, ${show.time(tx.timeMs)} UTC`)],
          ["Sender", link.address(tx.sender, true)],
          ["Nonce", tx.nonce],
          ["Dated", tx.dated],
          ["Expires after slot", show.slot(tx.expiresSlot)],
          ["Size", `${show.count(tx.sizeBytes)} B`],
        ]),
        tx.state === "final" ? make("div", { class: "bar-row" },
          download("Download receipt proof", `/proofs/receipt/${tx.txid}`, `receipt-${tx.txid.slice(0, 12)}.proof`),
          download("Download inclusion proof", `/proofs/inclusion/${tx.txid}`, `inclusion-${tx.txid.slice(0, 12)}.proof`),
          make("span", { class: "note" }, "Check it offline: ledger check-proof FILE --genesis genesis.json"))
          : null)),
      wide(panel(show.many(tx.operations.length, "operation"), ...tx.operations.map((one) =>
        make("div", { class: "operation" },
          make("h3", null, one.op, one.code ? chip(one.code) : null),
          facts(fields(one.fields)))))),
    ];
  },

  address(account, validator, download) {
    return [
      wide(make("section", { class: "panel" },
        make("h1", { class: "mono" }, account.address),
        account.known ? null : make("p", { class: "quiet" }, "The chain knows nothing of this address."),
        facts([
          ["Balance", `${show.money(account.balanceUc)} ¤`],
          ["Locked", `${show.money(account.lockedUc)} ¤`],
          ["Next nonce", account.nonce],
          ["Takes part", { TE: "trades", RE: "takes rewards only", "RE+TE": "trades and takes rewards" }[
            account.participation] || account.participation],
        ]),
        make("div", { class: "bar-row" },
          download("Download balance proof", `/proofs/state/account/${account.address}`,
            `balance-${account.address.slice(0, 12)}.proof`),
          make("span", { class: "note" }, "Check it offline: ledger check-proof FILE --genesis genesis.json")))),
      validator ? wide(panel("Validator", facts(validatorFacts(validator)))) : null,
      account.grant ? wide(panel("Grant", facts(fields(account.grant)))) : null,
      account.assets ? wide(panel("Energy it may trade", assetTables(account.assets))) : null,
    ].filter(Boolean);
  },

  validators(list, epoch, peers) {
    const heard = new Map((peers ? peers.peers : []).map((one) => [one.id, one]));
    return [
      wide(panel(`Validators of epoch ${list.epoch}`,
        make("p", { class: "quiet" }, `Leaders take turns by CPF, how well their homes use their own energy; ${
          list.scheduleLength} turns make a round (mode ${epoch.mode}). Every validator has one vote.`),
        table([["Validator", ""], ["Run by", ""], ["Status", ""], ["CPF", ""], ["Share of turns", ""],
          ["Blocks", "n"], ["Last led", "n"], ["Heard", "phone-off"]],
        byShare(list.validators).map((one) => [link.address(one.id), one.controller, chip(one.status), cpf(one),
          bar("share", one.sharePermille, show.percent(one.sharePermille)), one.blocks,
          one.lastLed === null ? "–" : link.block(one.lastLed),
          heard.has(one.id) ? show.since(heard.get(one.id).silentMs) : peers ? "not yet" : "–"]),
        "Validators"))),
      wide(panel("Order of turns", make("p", null, ...turns(list, epoch)))),
    ];
  },

  evidence(list) {
    return [wide(panel("Evidence",
      make("p", { class: "quiet" }, "Two votes of one validator that an honest one never signs both, as this node saw them."),
      list.evidence.length
        ? table([["Validator", ""], ["Epoch", "n"], ["View", "n"], ["First", ""], ["Second", ""], ["", ""]],
          list.evidence.map((one) => [one.validator ? link.address(one.validator) : `#${one.index}`,
            one.epoch, one.view, voteText(one.first), voteText(one.second),
            chip(one.judged ? "judged" : "open")]), "Evidence")
        : empty("None: this node saw no votes that exclude each other.")))];
  },
};

const empty = (text) => make("p", { class: "empty" }, text);
const byShare = (rows) => [...rows].sort(
  (a, b) => b.sharePermille - a.sharePermille || (b.cpfQ16 || 0) - (a.cpfQ16 || 0) || a.index - b.index);
const voteText = (vote) => `${vote.kind} ${/^0+$/.test(vote.blockHash) ? "" : show.short(vote.blockHash)}`;

function tiles(status) {
  const tile = (heading, value, note) => make("div", { class: "tile" }, make("h2", null, heading),
    make("p", { class: "value" }, value), make("p", { class: "note", title: note }, note));
  const node = status.node;
  return wide(make("section", { class: "tiles", "aria-label": "The chain" },
    tile("Height", show.count(status.height), show.short(status.blockHash)),
    tile("Market time", show.clock(status.timeMs), show.time(status.timeMs).slice(0, 10)),
    tile("Epoch", show.count(status.epoch), `slot ${status.slot}`),
    tile("Validators", status.validators, `${status.quorum} votes make a block final`),
    tile("This node", node ? (node.votes ? "votes" : "watches") : "a folder",
      node ? `${show.many(node.mempool, "transaction")} waiting` : "no node is running")));
}

function blockPanel(page) {
  const rows = page.blocks.map((one) => [link.block(one.height),
    make("span", { title: `${one.time}` }, show.clock(one.timeMs)), link.address(one.proposer),
    show.count(one.transactions), one.seal ? chip("seal") : `${one.epoch} / ${one.view}`]);
  return panel("Blocks", rows.length
    ? table([["Height", ""], ["Time", ""], ["Leader", ""], ["Tx", "n"], ["Epoch / view", "n phone-off"]], rows, "Blocks")
    : empty("No block yet."),
  make("div", { class: "bar-row" },
    page.blocks.length && page.blocks[0].height < page.tip
      ? make("a", { href: "#/" }, "← newest") : null,
    page.next ? make("a", { href: `#/from/${page.next}` }, "older →") : null));
}

function leaderPanel(list) {
  return panel(`Leaders of epoch ${list.epoch}`,
    table([["Validator", ""], ["CPF", ""], ["Share of turns", ""], ["Blocks", "n"]],
      byShare(list.validators).map((one) => [
        make("span", { title: one.controller }, link.address(one.id)), cpf(one),
        bar("share", one.sharePermille, show.percent(one.sharePermille)), one.blocks]), "Leaders"),
    make("p", { class: "note" }, "CPF: 1 is a home that uses exactly what it makes. Grey: not eligible now."));
}

function cpf(one) {
  if (one.cpfQ16 === null) return make("span", { class: "quiet" }, "none yet");
  const text = (one.cpfQ16 / 65536).toFixed(3);
  return one.eligible ? bar("cpf", one.cpfQ16 / 65.536, text) : make("span", { class: "quiet" }, text);
}

function transactionTable(items) {
  return table([["Transaction", ""], ["Sender", ""], ["Operations", ""], ["", ""]],
    items.map((one) => [link.tx(one.txid), link.address(one.sender), tally(one.operations), worst(one)]),
    "Transactions");
}

function tally(names) {
  const counts = new Map();
  for (const name of names) counts.set(name, (counts.get(name) || 0) + 1);
  return [...counts].map(([name, n]) => (n > 1 ? `${n} × ${name}` : name)).join(", ");
}

function worst(one) {
  if (one.code !== "OK") return chip(one.code);
  const refused = one.codes.filter((code) => code !== "OK");
  return refused.length ? chip(refused.length > 1 ? `${refused.length} refused` : refused[0]) : chip("OK");
}

function eventList(events) {
  return make("div", null, ...events.map((one) => {
    const { event, ...rest } = one;
    return make("details", { class: "operation" }, make("summary", null, event, " ",
      make("span", { class: "quiet mono" }, show.short(String(rest.address || rest.slot || rest.validator || "")))),
    facts(fields(rest)));
  }));
}

function validatorFacts(one) {
  return [["Run by", one.controller], ["Status", chip(one.status)],
    ["Seat in the running epoch", one.index === undefined ? "none" : `#${one.index}`],
    ["CPF", one.turns === undefined ? null : cpf(one)],
    ["Share of turns", one.turns === undefined ? null : show.percent(one.sharePermille)],
    ["Since epoch", one.sinceEpoch], ["Until epoch", one.untilEpoch || null],
    ["Key", make("span", { class: "mono" }, one.key)]];
}

function assetTables(assets) {
  const rows = Object.entries(assets).flatMap(([kind, list]) => (Array.isArray(list) ? list : []).map(
    ([wh, start, end]) => [kind, show.energy(wh), show.slot(start), show.slot(end)]));
  return table([["Kind", ""], ["Each slot", "n"], ["From slot", ""], ["To slot", ""]], rows, "Assets");
}

function turns(list, epoch) {
  if (!epoch.schedule.length) return ["No schedule is kept here yet."];
  const names = new Map(list.validators.map((one) => [one.index, one]));
  return epoch.schedule.slice(0, 32).flatMap((index, place) => {
    const one = names.get(index);
    return [place ? " → " : "", one
      ? make("a", { href: `#/address/${one.id}`, title: one.id }, one.controller || show.short(one.id)) : `#${index}`];
  }).concat(epoch.schedule.length > 32 ? [" → …"] : []);
}
