"use strict";
/* The four charts. Each takes the page's state and hands plotly whole arrays: a day is 96 slots. */

function colours() {
  const style = getComputedStyle(document.documentElement);
  return (name) => style.getPropertyValue("--" + name).trim();
}

/** Colour with an opacity, from "#rrggbb". */
function fade(hex, opacity) {
  const part = (i) => parseInt(hex.slice(i, i + 2), 16);
  return `rgba(${part(1)},${part(3)},${part(5)},${opacity})`;
}

const PLOT_CONFIG = { displayModeBar: false, responsive: true, showTips: false };

function layout(colour, more) {
  const axis = {
    gridcolor: colour("line"), zerolinecolor: colour("rule"), linecolor: colour("line"),
    tickfont: { color: colour("quiet"), size: 11 }, fixedrange: true, ticks: "",
  };
  const narrow = window.innerWidth < 640;
  const base = {
    margin: { l: 40, r: narrow ? 12 : 20, t: 8, b: 24 },
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: colour("ink") },
    showlegend: false, hovermode: "x unified", dragmode: false,
    hoverlabel: { bgcolor: colour("panel"), bordercolor: colour("line"),
      font: { color: colour("ink"), size: 12 } },
  };
  const result = { ...base, ...more };
  for (const name of Object.keys(result).filter((key) => /^[xy]axis/.test(key))) {
    result[name] = { ...axis, ...result[name] };
  }
  return result;
}

function dayAxis(state) {
  const narrow = window.innerWidth < 640;
  return {
    type: "date", range: [format.axis(state.day.startMs), format.axis(state.day.endMs)],
    dtick: (narrow ? 6 : 3) * 3600000, tickformat: "%H:%M", showgrid: false,
    hoverformat: "%H:%M",
  };
}

function nowLine(state, colour) {
  const inside = state.nowMs > state.day.startMs && state.nowMs < state.day.endMs;
  if (!inside) return [];
  const x = format.axis(state.nowMs);
  return [{ type: "line", x0: x, x1: x, yref: "paper", y0: 0, y1: 1, layer: "below",
    line: { color: colour("rule"), width: 1, dash: "dot" } }];
}

/** The largest of 1, 2, 5 × 10ⁿ that is at most `size`. */
function niceStep(size) {
  const power = 10 ** Math.floor(Math.log10(size));
  return [5, 2, 1].find((part) => part * power <= size) * power;
}

/** Markets in the order of their bars, with the colour of each. */
const MARKET_COLOURS = { market: "volume", double: "battery", offer: "solar", escrow: "grid",
  schedule: "v4", auction: "v5" };
const energyOf = (row, kind) => ((row.markets || {})[kind] || { energyWh: 0 }).energyWh;

const charts = {
  power(state, colour) {
    const slotMs = state.market.slotS * 1000;
    const rows = state.rows("slots").filter(
      (row) => row.loadW !== undefined && row.startMs + slotMs <= state.nowMs);
    const x = rows.map((row) => format.axis(row.startMs + slotMs / 2));
    const kw = (name) => rows.map((row) => row[name] / 1000);
    const hover = "%{y:.2f} kW";
    const line = (name, text, key, more) => ({
      x, y: kw(key), name: text, mode: "lines", hovertemplate: hover,
      line: { color: colour(name), width: 2, ...(more.line || {}) }, ...more.trace });
    const traces = [
      line("solar", "Solar", "pvW", { line: { width: 1.5 },
        trace: { fill: "tozeroy", fillcolor: fade(colour("solar"), .22) } }),
      line("battery", "Battery", "batteryW", { line: { width: 1.5 },
        trace: { fill: "tozeroy", fillcolor: fade(colour("battery"), .25) } }),
      line("grid", "Grid", "gridW", { line: {} }),
      line("load", "Load", "loadW", { line: { width: 2.2 } }),
    ];
    return [traces, layout(colour, {
      xaxis: dayAxis(state), yaxis: { rangemode: "tozero", nticks: 6, zeroline: true },
      margin: { l: 40, r: 40, t: 22, b: 24 }, showlegend: true,
      legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", traceorder: "reversed",
        font: { size: 12, color: colour("ink") }, itemclick: false, itemdoubleclick: false },
      shapes: nowLine(state, colour),
    })];
  },

  price(state, colour) {
    const slotMs = state.market.slotS * 1000;
    const rows = state.rows("slots").filter(
      (row) => row.bids !== undefined || row.markets !== undefined);
    const kinds = Object.keys(MARKET_COLOURS).filter(
      (kind) => kind === "market" || rows.some((row) => energyOf(row, kind)));
    const names = state.market.markets;
    const middle = (row) => format.axis(row.startMs + slotMs / 2);
    const retail = state.market.retailUc / 10000, feedIn = state.market.feedInUc / 10000;
    const most = Math.max(1, ...rows.map((row) => ((row.tradedWh || 0) + (row.flexWh || 0)) / 1000));
    const traces = [
      ...kinds.map((kind) => ({ x: rows.map(middle), type: "bar", name: names[kind], yaxis: "y2",
        y: rows.map((row) => energyOf(row, kind) / 1000), width: slotMs * .8,
        marker: { color: colour(MARKET_COLOURS[kind]) }, hovertemplate: "%{y:.2f} kWh" })),
      { x: rows.map(middle), y: rows.map((row) => row.priceUc === undefined ? null
          : row.priceUc / 10000), name: "Price", mode: "lines+markers",
        line: { color: colour("accent"), width: 2, shape: "hvh" },
        marker: { size: 3.5, color: colour("accent") }, connectgaps: false,
        hovertemplate: "%{y:.1f} ct/kWh" },
    ];
    const rule = (y) => ({ type: "line", xref: "paper", x0: 0, x1: 1, y0: y, y1: y,
      line: { color: colour("rule"), width: 1.2, dash: "dash" } });
    const label = (y, text, anchor) => ({ xref: "paper", x: 0.004, y, text, showarrow: false,
      xanchor: "left", yanchor: anchor, font: { size: 11, color: colour("quiet") } });
    return [traces, layout(colour, {
      xaxis: dayAxis(state), bargap: 0, barmode: "stack",
      yaxis: { range: [0, retail * 1.16], nticks: 5, title: { text: "" } },
      yaxis2: { overlaying: "y", side: "right", range: [0, most * 2.6], showgrid: false,
        tickvals: [0, 1, 2].map((i) => i * niceStep(most / 2)) },
      margin: { l: 40, r: 40, t: 8, b: 24 },
      shapes: [rule(retail), rule(feedIn), ...nowLine(state, colour)],
      annotations: [label(retail, `retail ${retail.toFixed(1)}`, "bottom"),
        label(feedIn, `feed-in ${feedIn.toFixed(1)}`, "bottom"),
        { xref: "paper", x: 1, yref: "y2", y: 2 * niceStep(most / 2), xanchor: "left",
          yanchor: "bottom", yshift: 8, xshift: 3, text: "kWh", showarrow: false,
          font: { size: 11, color: colour("quiet") } }],
    })];
  },

  blocks(state, colour) {
    const validators = state.validators();
    const order = new Map(validators.map((row, i) => [row.id, i]));
    const blocks = state.rows("blocks").filter(
      (row) => row.timeMs >= state.day.startMs && row.timeMs < state.day.endMs);
    const traces = validators.map((validator, i) => {
      const own = blocks.filter((row) => row.proposer === validator.id);
      return { x: own.map((row) => format.axis(row.timeMs)), y: own.map(() => i),
        mode: "markers", name: validator.label, type: "scatter",
        marker: { symbol: "line-ns", size: 12,
          line: { width: 1.6, color: colour("v" + i % 6) } },
        text: own.map((row) => `block ${row.height}, ${row.nTx} tx, ${row.finalityMs} ms`),
        hovertemplate: "%{text}<extra>%{fullData.name}</extra>" };
    });
    return [traces, layout(colour, {
      xaxis: dayAxis(state), hovermode: "closest",
      yaxis: { range: [order.size - .4, -.6], tickvals: [...order.values()],
        ticktext: validators.map((row) => row.label), showgrid: false, zeroline: false,
        automargin: true },
      margin: { l: 12, r: 12, t: 4, b: 24 }, shapes: nowLine(state, colour),
    })];
  },

  leaders(state, colour) {
    const validators = state.validators();
    const turns = validators.reduce((sum, row) => sum + row.turns, 0) || 1;
    const labels = validators.map((row) => row.label);
    const shown = validators.map((row) => row.turns / turns * 100);
    const cpf = validators.map((row) => (row.cpfCount ? row.cpfSum / row.cpfCount / 655.36 : null));
    const traces = [
      { y: labels, x: shown, type: "bar", orientation: "h", name: "Share of turns",
        marker: { color: validators.map((_, i) => colour("v" + i % 6)) }, width: .62,
        text: shown.map((value) => value.toFixed(0) + " %"), textposition: "inside",
        insidetextanchor: "start", insidetextfont: { size: 11 }, constraintext: "none",
        hovertemplate: "%{x:.1f} % of turns<extra></extra>" },
      { y: labels, x: cpf, mode: "markers", name: "CPF", xaxis: "x",
        marker: { symbol: "diamond", size: 9, color: colour("ink"),
          line: { width: 1.5, color: colour("panel") } },
        text: cpf.map((value, i) => `mean CPF ${(value / 100).toFixed(2)}, eligible in `
          + `${validators[i].eligibleCount} of ${validators[i].cpfCount} windows`),
        hovertemplate: "%{text}<extra></extra>" },
    ];
    return [traces, layout(colour, {
      hovermode: "closest", bargap: .4,
      xaxis: { range: [0, 103], tickvals: [0, 25, 50, 75, 100], ticksuffix: " %" },
      yaxis: { autorange: "reversed", automargin: true, showgrid: false },
      margin: { l: 12, r: 8, t: 22, b: 24 },
      annotations: [{ xref: "paper", yref: "paper", x: 1, y: 1.02, xanchor: "right",
        yanchor: "bottom", showarrow: false, font: { size: 11, color: colour("quiet") },
        text: "bar: share of turns   ◆ mean CPF × 100" }],
    })];
  },
};

/** Draw the chart `name` of `state`. */
function draw(name, state) {
  const [traces, plan] = charts[name](state, colours());
  Plotly.react("chart-" + name, traces, plan, PLOT_CONFIG);
}
