// Draws the charts, paints them for the colour scheme, and builds their legends.
"use strict";

const report = JSON.parse(document.getElementById("report-data").textContent);
const darkScheme = window.matchMedia("(prefers-color-scheme: dark)");
const PAPER_WIDTH = 620; // pixels: fits A4 and Letter upright
let printing = false;

function theme() {
  const name = darkScheme.matches && !printing ? "dark" : "light";
  return name === "dark"
    ? { name, ink: "#e9edf1", muted: "#a6b0ba", rule: "#2c343d", axis: "#5a6570", paper: "#161b21" }
    : { name, ink: "#15191e", muted: "#505a65", rule: "#e6e9ec", axis: "#9aa3ad", paper: "#ffffff" };
}

function mix(hex, other, share) {
  const channel = (text, at) => parseInt(text.slice(at, at + 2), 16);
  return "#" + [1, 3, 5].map((at) =>
    Math.round(channel(hex, at) * (1 - share) + channel(other, at) * share).toString(16).padStart(2, "0")).join("");
}

// Series of one group keep its hue; shade runs from towards the paper (-1) to towards the ink (1).
function colour(group, shade, colours) {
  const base = report.styles[group][colours.name];
  return shade < 0 ? mix(base, colours.paper, -shade * 0.45) : mix(base, colours.ink, shade * 0.35);
}

function paintTrace(trace, colours, hidden) {
  const shown = colour(trace.meta.group, trace.meta.shade, colours);
  const painted = { ...trace, showlegend: false, visible: !hidden.has(trace.meta.series) };
  painted.line = { ...trace.line, color: shown };
  if (trace.type === "bar") painted.marker = { color: shown };
  else if (trace.marker) painted.marker = { ...trace.marker, color: shown, line: { color: colours.paper, width: 1 } };
  if (trace.meta.band) painted.fillcolor = shown + "33";
  for (const bars of ["error_x", "error_y"]) if (trace[bars]) painted[bars] = { ...trace[bars], color: shown };
  if (trace.type === "bar") delete painted.line;
  return painted;
}

function paintLayout(layout, colours, node) {
  const narrow = node.clientWidth < 420;
  const font = { family: getComputedStyle(document.body).fontFamily, size: narrow ? 11 : 12, color: colours.ink };
  const axis = {
    gridcolor: colours.rule, linecolor: colours.axis, tickcolor: colours.axis, zerolinecolor: colours.axis,
    showline: true, ticks: "outside", ticklen: 4, zeroline: false, tickfont: { color: colours.muted },
  };
  const dressed = (data) => ({ ...axis, ...data, title: { ...data.title, standoff: 8, font: { size: font.size + 1 } } });
  return {
    ...layout, font, showlegend: false,
    autosize: !printing, width: printing ? PAPER_WIDTH : undefined,
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    margin: { l: 52, r: 12, t: 8, b: 44 },
    xaxis: dressed(layout.xaxis), yaxis: dressed(layout.yaxis),
    shapes: layout.shapes.map((shape) => ({ ...shape, line: { ...shape.line, color: colours.muted } })),
    hoverlabel: { align: "left", bgcolor: colours.paper, bordercolor: colours.axis, font: { ...font, size: 12 } },
    bargap: 0.25,
  };
}

const config = {
  displaylogo: false, responsive: true, scrollZoom: false, showTips: false, displayModeBar: "hover",
  modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d", "zoomIn2d", "zoomOut2d"],
};

function draw(plot) {
  const node = document.getElementById(plot.key);
  if (!node) return null;
  const colours = theme();
  const traces = plot.traces.map((trace) => paintTrace(trace, colours, plot.hidden));
  paintLegend(plot, colours);
  return Plotly.react(node, traces, paintLayout(plot.layout, colours, node), config);
}

function svg(tag, attributes) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}

const DASHES = { solid: "none", dash: "5 3", dot: "1.5 2.5", dashdot: "5 2 1.5 2" };

// The key of a legend entry: a marker where the chart has markers, else a piece of the line.
function swatch(plot, entry, index) {
  const picture = svg("svg", { viewBox: "0 0 22 16", class: "swatch", "aria-hidden": "true" });
  const traces = plot.traces.filter((trace) => trace.meta.series === index);
  if (traces.some((trace) => trace.type === "scatter" && trace.mode.includes("lines") && !trace.meta.band)) {
    picture.append(svg("path", { d: "M1 8H21", class: "stroke", "stroke-dasharray": DASHES[entry.dash] }));
  }
  const isBar = traces.some((trace) => trace.type === "bar");
  if (isBar || traces.some((trace) => trace.marker)) {
    const outline = report.markers[isBar ? "square" : report.styles[entry.group].symbol];
    picture.append(svg("path", { d: outline, transform: "translate(3 0)", class: "fill" }));
  }
  return picture;
}

function addChip(legend, words, contents, click, doubleClick) {
  const chip = document.createElement("button");
  chip.type = "button";
  chip.className = "chip";
  chip.title = words;
  chip.append(...contents);
  chip.addEventListener("click", click);
  if (doubleClick) chip.addEventListener("dblclick", doubleClick);
  legend.append(chip);
  return chip;
}

function buildLegend(plot) {
  plot.hidden = new Set();
  plot.chips = [];
  const legend = document.querySelector(`.legend[data-for="${plot.key}"]`);
  if (!legend || plot.series.length < 2) return;
  const groups = new Set(plot.series.map((entry) => entry.group));
  const manySeries = plot.series.length > 8 && groups.size > 1 && groups.size < plot.series.length;
  const groupRow = document.createElement("div");
  groupRow.className = "groups";
  if (manySeries) legend.append(groupRow);
  for (const group of manySeries ? groups : []) {
    const members = plot.series.flatMap((entry, index) => (entry.group === group ? [index] : []));
    const words = "Click to hide or show all of this group";
    const chip = addChip(groupRow, words, [report.styles[group].label], () => toggle(plot, members));
    chip.classList.add("group");
    plot.chips.push({ chip, members });
  }
  plot.series.forEach((entry, index) => {
    const words = "Click to hide or show, double-click to show alone";
    const contents = [swatch(plot, entry, index), entry.name];
    const chip = addChip(legend, words, contents, () => toggle(plot, [index]), () => isolate(plot, index));
    plot.chips.push({ chip, members: [index] });
  });
}

function toggle(plot, members) {
  const show = members.every((index) => plot.hidden.has(index));
  for (const index of members) show ? plot.hidden.delete(index) : plot.hidden.add(index);
  draw(plot);
}

function isolate(plot, index) {
  const others = plot.series.map((_, at) => at).filter((at) => at !== index);
  const alone = others.every((at) => plot.hidden.has(at));
  plot.hidden = new Set(alone ? [] : others);
  draw(plot);
}

function paintLegend(plot, colours) {
  for (const { chip, members } of plot.chips) {
    const entry = plot.series[members[0]];
    chip.setAttribute("aria-pressed", String(members.some((index) => !plot.hidden.has(index))));
    chip.style.setProperty("--series", colour(entry.group, entry.shade, colours));
  }
}

function drawAll() {
  for (const plot of report.plots) draw(plot);
}

// First-screen charts first; the others one a turn, so that a long report can be read and scrolled meanwhile.
function drawInTurn(index) {
  if (index === report.plots.length) {
    document.documentElement.dataset.plots = "ready";
    return;
  }
  Promise.resolve(draw(report.plots[index])).finally(() => setTimeout(drawInTurn, 0, index + 1));
}

report.plots.forEach(buildLegend);
drawInTurn(0);
darkScheme.addEventListener("change", drawAll);

let opened = [];
window.addEventListener("beforeprint", () => {
  printing = true;
  opened = [...document.querySelectorAll("details:not([open])")];
  for (const node of opened) node.open = true;
  drawAll();
});
window.addEventListener("afterprint", () => {
  printing = false;
  for (const node of opened) node.open = false;
  drawAll();
});
