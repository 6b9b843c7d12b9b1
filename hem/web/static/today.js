"use strict";
/* The three charts of the day, drawn anew every minute and when the colours change. */

const EVERY_MS = 60000;
const CONFIG = { displayModeBar: false, responsive: true, showTips: false };
let day = null;

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();

function fade(hex, opacity) {
  const part = (i) => parseInt(hex.slice(i, i + 2), 16);
  return `rgba(${part(1)},${part(3)},${part(5)},${opacity})`;
}

function layout(more) {
  const narrow = innerWidth < 640;
  const axis = { gridcolor: colour("line"), zerolinecolor: colour("rule"), linecolor: colour("line"),
    tickfont: { color: colour("quiet"), size: 14 }, fixedrange: true, ticks: "", tickformat: "~g" };
  const base = {
    margin: { l: 42, r: 10, t: 30, b: 30 },
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", dragmode: false,
    font: { family: getComputedStyle(document.body).fontFamily, size: 14, color: colour("ink") },
    hovermode: "x unified", hoverlabel: { bgcolor: colour("panel"), bordercolor: colour("line"),
      font: { color: colour("ink"), size: 14 } },
    legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", itemclick: false,
      itemdoubleclick: false, font: { size: 14 } },
    xaxis: { type: "date", range: [day.start, day.end], dtick: (narrow ? 6 : 3) * 3600000,
      tickformat: "%H:%M", hoverformat: "%H:%M", showgrid: false },
    shapes: [{ type: "line", x0: day.now, x1: day.now, yref: "paper", y0: 0, y1: 1, layer: "below",
      line: { color: colour("rule"), width: 1.5, dash: "dot" } }],
  };
  const result = { ...base, ...more, shapes: [...base.shapes, ...(more.shapes || [])] };
  for (const key of Object.keys(result).filter((name) => /^[xy]axis/.test(name))) {
    result[key] = { ...axis, ...result[key] };
  }
  return result;
}

const line = (x, y, name, key, more) => ({ x, y, name, mode: "lines", hovertemplate: "%{y:.2f} kWh",
  line: { color: colour(key), width: 2.4 }, ...more });
const dotted = (key) => ({ line: { color: colour(key), width: 1.8, dash: "dot" }, showlegend: false });

function energy() {
  const { actual, forecast } = day;
  return [[
    line(forecast.x, forecast.sun, "Sun, forecast", "solar", dotted("solar")),
    line(forecast.x, forecast.load, "House, forecast", "load", dotted("load")),
    line(actual.x, actual.sun, "Sun", "solar",
      { fill: "tozeroy", fillcolor: fade(colour("solar"), .2) }),
    line(actual.x, actual.load, "House", "load"),
  ], layout({ yaxis: { rangemode: "tozero", nticks: 5 } })];
}

function battery() {
  const { battery: done, plan } = day;
  const bars = (from, name, opacity) => ({ x: from.x, y: from.given, name, type: "bar", yaxis: "y2",
    marker: { color: colour("grid"), opacity }, hovertemplate: "%{y:.2f} kWh" });
  const percent = { hovertemplate: "%{y:.0f} %" };
  const traces = [bars(done, "Energy", .75),
    line(done.socX, done.soc, "Full", "battery", percent)];
  if (day.hasPlan) {
    traces.push(bars(plan, "Energy, plan", .3),
      line(plan.socX, plan.soc, "Full, plan", "battery", { ...percent, ...dotted("battery"), showlegend: true }));
  }
  const most = Math.max(.1, ...[...done.given, ...plan.given].map(Math.abs)) * 2.5;
  return [traces, layout({ barmode: "overlay", bargap: .15,
    yaxis: { range: [0, 105], nticks: 5, ticksuffix: " %" },
    yaxis2: { overlaying: "y", range: [-most, most], visible: false },
    margin: { l: 52, r: 10, t: 30, b: 30 } })];
}

function price() {
  const { x, clearing, retail, feedIn } = day.price;
  const rule = (y) => ({ type: "line", xref: "paper", x0: 0, x1: 1, y0: y, y1: y,
    line: { color: colour("rule"), width: 1.4, dash: "dash" } });
  const label = (y, text, anchor) => ({ xref: "paper", x: .005, y, text, showarrow: false,
    xanchor: "left", yanchor: anchor, font: { size: 14, color: colour("quiet") } });
  return [[{ x, y: clearing, name: "Price", mode: "lines+markers", hovertemplate: "%{y:.2f} ct/kWh",
    line: { color: colour("accent"), width: 2.2, shape: "hvh" },
    marker: { color: colour("accent"), size: 5 } }], layout({ showlegend: false,
    yaxis: { range: [0, retail * 1.2], nticks: 5 }, shapes: [rule(retail), rule(feedIn)],
    annotations: [label(retail, `retail ${retail.toFixed(2)}`, "bottom"),
      label(feedIn, `feed-in ${feedIn.toFixed(2)}`, "top")] })];
}

async function draw() {
  const charts = { energy, battery, price };
  document.getElementById("chart-battery").hidden = !day.hasBattery;
  document.getElementById("no-battery").hidden = day.hasBattery;
  if (!day.hasBattery) delete charts.battery;
  for (const [name, make] of Object.entries(charts)) {
    const [traces, plan] = make();
    await Plotly.react("chart-" + name, traces, plan, CONFIG);
  }
}

async function update() {
  const failed = document.getElementById("failed");
  try {
    const answer = await fetch("/api/today", { cache: "no-store" });
    if (answer.status === 401) {
      location.assign("/login");
      return;
    }
    if (!answer.ok) throw new Error(String(answer.status));
    day = await answer.json();
    await draw();
    failed.hidden = true;
    document.body.dataset.ready = "yes";
  } catch {
    failed.hidden = false;
  }
}

async function keepOn() {
  if (!document.hidden) await update();
  setTimeout(keepOn, EVERY_MS);
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { if (day) draw(); });
keepOn();
