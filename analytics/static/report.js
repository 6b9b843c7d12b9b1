"use strict";
/* The report's charts: the console's, and three of its own. */

const report = JSON.parse(document.getElementById("report-data").textContent);

const DAY_MS = 86400000;
const reportState = {
  market: { slotS: report.slotS, retailUc: report.tariff.retailUc,
    feedInUc: report.tariff.feedInUc, markets: report.marketNames },
  day: { startMs: report.startMs, endMs: report.endMs },
  nowMs: report.endMs + DAY_MS,
  rows: (name) => (name === "slots" ? report.slots : []),
  validators: () => report.blocks.leaders.map((row) => ({ ...row,
    cpfSum: row.meanCpfQ16 * row.attestations, cpfCount: row.attestations,
    eligibleCount: row.eligible,
    label: row.controller && !row.controller.startsWith("hg1")
      ? row.controller : format.short(row.id) })),
};

const PARTS = [["neighbours", "neighbours", "battery"], ["flexibility", "flexibility", "solar"],
  ["shortfall", "not delivered", "v3"], ["surplus", "not taken", "v4"],
  ["deviation", "off schedule", "v2"], ["fees", "fees", "v1"], ["lost", "lost", "v0"],
  ["rewards", "rewards", "volume"],
  ["battery", "battery use", "grid"], ["stored", "energy left", "v5"],
  ["assumed", "no receipt", "ink"], ["other", "other", "rule"]];

charts.bills = (state, colour) => {
  const names = report.bills.map((row) => row.home);
  const bar = (key, name, shade) => ({ x: names, y: report.bills.map((row) => row[key] / 1e6),
    type: "bar", name, marker: { color: shade },
    hovertemplate: `%{y:.2f} ${report.currency}` });
  return [[bar("baselineUc", "without a market", colour("volume")),
    bar("marketUc", "with the market", colour("accent"))],
  layout(colour, { barmode: "group", bargap: .28, bargroupgap: .06, showlegend: true,
    legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", itemclick: false,
      itemdoubleclick: false },
    xaxis: { showgrid: false, type: "category" },
    yaxis: { zeroline: true, title: { text: report.currency, standoff: 6 } },
    margin: { l: 52, r: 12, t: 28, b: 28 } })];
};

charts.parts = (state, colour) => {
  const names = report.bills.map((row) => row.home);
  const used = PARTS.filter(([key]) => report.bills.some(
    (row) => Math.abs(row.parts[key]) >= 500));
  const traces = used.map(([key, name, shade]) => ({ x: names,
    y: report.bills.map((row) => row.parts[key] / 1e6), type: "bar", name,
    marker: { color: colour(shade) }, hovertemplate: `%{y:+.3f} ${report.currency}` }));
  traces.push({ x: names, y: report.bills.map((row) => row.savedUc / 1e6), name: "saved in all",
    mode: "markers", marker: { symbol: "diamond", size: 9, color: colour("ink"),
      line: { width: 1.5, color: colour("panel") } },
    hovertemplate: `%{y:+.3f} ${report.currency}` });
  return [traces, layout(colour, { barmode: "relative", bargap: .4, showlegend: true,
    legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", itemclick: false,
      itemdoubleclick: false },
    xaxis: { showgrid: false, type: "category" },
    yaxis: { zeroline: true, title: { text: report.currency, standoff: 6 } },
    margin: { l: 52, r: 12, t: 46, b: 28 } })];
};

charts.finality = (state, colour) => {
  const { histogram, p50, p95, p99 } = report.blocks.finality;
  const step = histogram.length ? histogram[0].toMs : 1;
  const mark = (x, text, y) => ({ x, y, yref: "paper", text: `${text} ${x} ms`, showarrow: false,
    xanchor: "left", yanchor: "top", xshift: 4, font: { size: 11, color: colour("quiet") } });
  const rule = (x) => ({ type: "line", x0: x, x1: x, yref: "paper", y0: 0, y1: 1,
    line: { color: colour("rule"), width: 1, dash: "dot" } });
  const marks = p50 === null ? [] : [[p50, "p50", 1], [p95, "p95", .88], [p99, "p99", .76]];
  return [[{ x: histogram.map((row) => (row.fromMs + row.toMs) / 2),
    y: histogram.map((row) => row.count), type: "bar", width: step * .92,
    marker: { color: colour("accent") },
    customdata: histogram.map((row, i) => i === histogram.length - 1
      ? `${row.fromMs} ms and more` : `${row.fromMs}–${row.toMs} ms`),
    hovertemplate: "%{customdata}: %{y} blocks<extra></extra>" }],
  layout(colour, { hovermode: "closest", bargap: 0,
    xaxis: { ticksuffix: " ms", showgrid: false, range: [0, step * (histogram.length + 4)] },
    yaxis: { rangemode: "tozero", nticks: 5 }, margin: { l: 44, r: 12, t: 12, b: 28 },
    shapes: marks.map(([x]) => rule(x)),
    annotations: marks.map(([x, text, y]) => mark(x, text, y)) })];
};

function drawReport() {
  for (const name of Object.keys(charts)) {
    if (document.getElementById("chart-" + name)) draw(name, reportState);
  }
  document.body.dataset.ready = "yes";
}

for (const part of document.querySelectorAll("[data-share]")) {
  part.style.flexGrow = part.dataset.share;
}
drawReport();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawReport);
