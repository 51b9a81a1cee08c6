// Interactive figures: each panel is drawn from the series in DATA when it scrolls into view.
"use strict";

const DARK = matchMedia("(prefers-color-scheme: dark)");
let printing = false;

const isDark = () => DARK.matches && !printing;

/** A colour as [r, g, b]; on a dark page, colours that are too dark to see are mixed with white. */
function visible(color) {
  let parts = [1, 3, 5].map((at) => parseInt(color.slice(at, at + 2), 16));
  const light = (0.299 * parts[0] + 0.587 * parts[1] + 0.114 * parts[2]) / 255;
  if (isDark() && light < 0.45) parts = parts.map((part) => Math.round(part + (255 - part) * (0.62 - light)));
  if (isDark() && color === "#000000") parts = [255, 255, 255];
  return parts;
}
const rgba = (color, alpha) => `rgba(${visible(color).join(",")},${alpha})`;

/** Colour of a layer: from dark blue (input) through green to yellowish (output). */
function depthColor(index, count) {
  const stops = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98]];
  const at = count < 2 ? 0 : (index / (count - 1)) * (stops.length - 1);
  const low = Math.min(Math.floor(at), stops.length - 2);
  const parts = stops[low].map((part, k) => Math.round(part + (stops[low + 1][k] - part) * (at - low)));
  return `#${parts.map((part) => part.toString(16).padStart(2, "0")).join("")}`;
}

function option(figure, name) {
  return document.querySelector(`select[data-figure="${figure}"][data-option="${name}"]`).value;
}
const eachSeed = () => document.getElementById("each-seed").checked;

function mean(values) {
  const known = values.filter((value) => value !== null && value !== undefined);
  return known.length ? known.reduce((sum, value) => sum + value, 0) / known.length : null;
}
function largest(values) {
  const known = values.filter((value) => value !== null && value !== undefined);
  return known.length ? Math.max(...known) : null;
}
function deviation(values) {
  if (values.length < 2) return 0;
  const middle = mean(values);
  return Math.sqrt(values.reduce((sum, value) => sum + (value - middle) ** 2, 0) / (values.length - 1));
}

/** Mean and band over runs, at the places that all of them have; `get` maps a run to a map from place to [x, y]. */
function average(runs, get) {
  const maps = runs.map(get).filter((map) => map.size);
  const series = { x: [], mean: [], low: [], high: [] };
  if (!maps.length) return series;
  for (const key of maps[0].keys()) {
    if (!maps.every((map) => map.has(key))) continue;
    const points = maps.map((map) => map.get(key));
    const [middle, spread] = [mean(points.map((p) => p[1])), deviation(points.map((p) => p[1]))];
    series.x.push(typeof points[0][0] === "number" ? mean(points.map((p) => p[0])) : points[0][0]);
    series.mean.push(middle);
    series.low.push(middle - spread);
    series.high.push(middle + spread);
  }
  return series;
}

/** Traces of a series: its band, if it has one, and its line. */
function lines(name, look, series) {
  const alone = series.x.length < 2 ? 8 : 6;
  const line = {
    x: series.x, y: series.mean, name, mode: look.thin ? "lines" : "lines+markers", legendgroup: name, showlegend: !look.quiet,
    line: { color: rgba(look.color, look.thin ? 0.7 : 1), dash: look.dash, width: look.thin ? 1 : 2 },
    marker: { symbol: look.symbol, size: series.share ? series.share.map((share) => 5 + share / 6) : alone, color: rgba(look.color, 1), maxdisplayed: 12 },
    hovertemplate: "%{y:.4~g}%{customdata}", cliponaxis: !series.share,
    customdata: series.high.map((high, k) => (high > series.mean[k] ? ` ± ${(high - series.mean[k]).toPrecision(2)}` : "")),
  };
  const wide = series.high.some((high, k) => high > series.low[k]);
  if (look.thin || !wide) return [line];
  const edge = { mode: "lines", line: { width: 0 }, hoverinfo: "skip", showlegend: false, legendgroup: name };
  return [
    { ...edge, x: series.x, y: series.low },
    { ...edge, x: series.x, y: series.high, fill: "tonexty", fillcolor: rgba(look.color, 0.15) },
    line,
  ];
}

/** Traces of the runs of a curve: their average, or one trace per run. */
function overSeeds(curve, name, look, get) {
  const runs = curve.runs.filter(isChosen);
  if (!eachSeed()) return lines(name, look, average(runs, get));
  return runs.flatMap((run) => lines(`${name}, seed ${run.seed}`, look, average([run], get)));
}

const pick = (run, values, x) =>
  new Map(run.epochs.map((epoch, k) => [epoch, [x ? x[k] : epoch, values?.[k]]]).filter(([, p]) => p[1] !== null && p[1] !== undefined));

const chosenCurves = (panel) => panel.curves.filter((curve) => isChosen(curve) && curve.runs.some(isChosen));

function progress(figure, bySeconds) {
  const quantity = option(figure, "quantity");
  const measured = DATA.panels.filter((panel) => panel.curves.some((curve) => curve.runs.some((run) => quantity in run.validation)));
  return measured.map((panel) => ({
    title: panel.title,
    x: bySeconds ? "seconds of training" : "epoch",
    y: DATA.quantities[quantity],
    log: option(figure, "scale") === "log" && quantity !== "r2", // R² may be negative
    traces: chosenCurves(panel).flatMap((curve) => [
      ...(bySeconds ? [] : overSeeds(curve, curve.name, { ...curve, thin: true, quiet: true }, (run) => pick(run, run.train[quantity]))),
      ...overSeeds(curve, curve.name, curve, (run) => pick(run, run.validation[quantity], bySeconds && run.seconds)),
    ]),
  }));
}

/** Names of the layers that the reader has not chosen, by panel; at first the output layer, if there are others. */
const hiddenLayers = DATA.panels.map((panel) => new Set(panel.layers.slice(1).slice(-1)));

/** Label of an axis: the name of a quantity without its explanation. */
const short = (name) => name.replace(/ between .* \(/, " (");

function overLayers() {
  const quantity = option("layers", "quantity");
  const common = { x: "epoch", y: short(DATA.layerwise[quantity]), angles: quantity !== "norm_ratios" };
  return DATA.panels.flatMap((panel, at) => {
    const kept = panel.layers.map((name, k) => [name, k]).filter(([name]) => !hiddenLayers[at].has(name));
    const curves = chosenCurves(panel).filter((curve) => curve.runs.some((run) => quantity in run.layers));
    const over = (indices, combine = mean) => (run) => {
      const series = run.layers[quantity];
      return pick(run, series && run.epochs.map((_, k) => combine(indices.map((index) => series[index][k]))));
    };
    if (option("layers", "view") === "mean") {
      const indices = kept.map(([, k]) => k);
      const worst = (curve) => overSeeds(curve, curve.name, { ...curve, thin: true, quiet: true }, over(indices, largest));
      const traces = curves.flatMap((curve) => [
        ...(quantity === "gradient_angles" && indices.length > 1 ? worst(curve) : []),
        ...overSeeds(curve, curve.name, curve, over(indices)),
      ]);
      return [{ ...common, title: panel.title, traces }];
    }
    return curves.map((curve) => ({
      ...common,
      title: `${panel.title}: ${curve.name}`,
      traces: kept.flatMap(([name, k]) =>
        overSeeds(curve, name, { color: depthColor(k, panel.layers.length), symbol: curve.symbol, dash: "solid" }, over([k]))),
    }));
  });
}

function byDepth() {
  const quantity = option("depth", "quantity");
  const place = option("depth", "epoch") === "last" ? -1 : 0;
  return DATA.panels.map((panel) => {
    const kept = panel.layers.map((name, k) => [name, k]);
    const get = (run) => {
      const series = run.layers[quantity];
      return new Map((series ? kept : []).map(([name, k]) => [name, [name, series[k].at(place)]]).filter(([, p]) => p[1] !== null && p[1] !== undefined));
    };
    return {
      title: panel.title, x: "layer, from the input to the output", y: short(DATA.layerwise[quantity]), angles: quantity !== "norm_ratios", category: kept.map(([name]) => name),
      traces: chosenCurves(panel).flatMap((curve) => overSeeds(curve, curve.name, curve, get)),
    };
  });
}

/** The list that a figure of robustness studies chooses from, and the name of its menu. */
const OF_STUDIES = { attacked: ["attacks", "attack"], beside: ["beside", "measured"] };

function ofStudy(figure) {
  const [list, menu] = OF_STUDIES[figure];
  const study = DATA.studies[option(figure, "study")];
  const chosen = study[list][option(figure, menu)];
  if (!chosen) return [];
  return chosen.panels.map((panel) => ({
    title: [study.title, chosen.name, panel.title].filter(Boolean).join(", "),
    x: chosen.x, y: chosen.y, percent: chosen.y === "accuracy (%)", diagonal: chosen.diagonal,
    traces: panel.curves.filter(isChosen).flatMap((curve) => lines(curve.name, { ...curve, thin: curve.dash === "dot" }, curve)),
  }));
}

const DRAW = {
  learning: () => progress("learning", false),
  cost: () => progress("cost", true),
  layers: overLayers,
  depth: byDepth,
  attacked: () => ofStudy("attacked"),
  beside: () => ofStudy("beside"),
};

/** Range of a logarithmic axis around the lines (bands may leave it), and its marks, written as numbers. */
function logAxis(traces) {
  const values = traces.filter((trace) => trace.hovertemplate).flatMap((trace) => trace.y).filter((value) => value > 0);
  if (!values.length) return {};
  const [low, high] = [Math.min(...values), Math.max(...values)].map(Math.log10);
  const steps = high - low > 2.5 ? [1] : high - low > 0.8 ? [1, 2, 5] : [1, 1.5, 2, 3, 4, 5, 7];
  const ticks = [];
  for (let power = Math.floor(low) - 1; power <= Math.ceil(high); power += 1) ticks.push(...steps.map((step) => step * 10 ** power));
  const room = 0.05 * Math.max(high - low, 0.1);
  return { range: [low - room, high + room], tickmode: "array", tickvals: ticks, ticktext: ticks.map((tick) => String(Number(tick.toPrecision(3)))) };
}

function layout(panel) {
  const text = isDark() ? "#e8e8e8" : "#1a1a1a";
  const grid = isDark() ? "#3a3e45" : "#e3e5e8";
  const axis = { gridcolor: grid, zerolinecolor: grid, linecolor: grid, automargin: true };
  const named = panel.category ? { type: "category", categoryorder: "array", categoryarray: panel.category } : {};
  const longest = Math.max(0, ...panel.traces.flatMap((trace) => (panel.x === "epoch" ? trace.x : [])));
  const whole = panel.x === "epoch" && longest <= 12 ? { dtick: 1 } : {};
  const right = { type: "line", xref: "paper", x0: 0, x1: 1, y0: 90, y1: 90, line: { color: text, width: 1, dash: "dot" } };
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: text, size: 12 },
    margin: { l: 10, r: 10, t: 30, b: 10 }, hovermode: "x unified", showlegend: true,
    hoverlabel: { bgcolor: isDark() ? "#21242a" : "#ffffff", font: { color: text } },
    legend: { orientation: "h", yanchor: "top", y: -0.25, x: 0 },
    xaxis: { ...axis, ...named, ...whole, title: { text: panel.x }, ...(panel.diagonal ? { range: [0, 100] } : { rangemode: "tozero" }) },
    yaxis: { ...axis, title: { text: panel.y }, type: panel.log ? "log" : "linear", ...(panel.log ? logAxis(panel.traces) : {}), ...(panel.percent ? { range: [0, 100] } : panel.log ? {} : { rangemode: "tozero" }) },
    shapes: panel.angles ? [right] : panel.diagonal ? [{ ...right, xref: "x", x1: 100, y0: 0, y1: 100 }] : [],
    modebar: { bgcolor: "rgba(0,0,0,0)", color: isDark() ? "#9aa0a8" : "#8a8f98", activecolor: text },
  };
}

/** The last value of every line as text, for readers who cannot hover. */
function values(panel) {
  const details = document.createElement("details");
  const list = document.createElement("ul");
  for (const trace of panel.traces.filter((each) => each.hovertemplate && each.showlegend && each.x.length)) {
    const item = document.createElement("li");
    item.textContent = `${trace.name}: ${trace.y.at(-1).toPrecision(4)}${trace.customdata.at(-1)} at ${trace.x.at(-1)}`;
    list.append(item);
  }
  const summary = document.createElement("summary");
  summary.textContent = "Values";
  details.append(summary, list);
  return details;
}

const waiting = new Map();
function drawNow(place) {
  const panel = waiting.get(place);
  if (!panel) return;
  waiting.delete(place);
  Plotly.newPlot(place, panel.traces, layout(panel), { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d"] });
}
const sight = new IntersectionObserver((entries) => entries.filter((each) => each.isIntersecting).forEach((each) => drawNow(each.target)), { rootMargin: "300px" });

function draw(name) {
  const grid = document.querySelector(`.plots[data-figure="${name}"]`);
  if (!grid) return;
  for (const place of grid.querySelectorAll(".plot")) {
    sight.unobserve(place);
    waiting.delete(place);
    Plotly.purge(place);
  }
  const panels = DRAW[name]().filter((panel) => panel.traces.some((trace) => trace.x.length));
  grid.replaceChildren(...panels.map((panel) => {
    const figure = document.createElement("figure");
    const head = document.createElement("h4");
    head.textContent = panel.title;
    const place = document.createElement("div");
    place.className = "plot";
    const names = panel.traces.filter((trace) => trace.showlegend).length;
    place.style.height = `${22 + 0.8 * names}rem`; // room for the legend below, with two or three names per line
    place.setAttribute("role", "img");
    place.setAttribute("aria-label", `${panel.title}: ${panel.y} over ${panel.x}; the last values are listed below as text`);
    figure.append(head, place, values(panel));
    waiting.set(place, panel);
    return figure;
  }));
  grid.closest(".figure").classList.toggle("wide", panels.length > 1);
  if (!panels.length) grid.textContent = "None of the chosen runs has data for this figure.";
  grid.querySelectorAll(".plot").forEach((place) => sight.observe(place));
}
const drawAll = () => Object.keys(DRAW).forEach(draw);

/** Fill the menu with the attacks or other measurements of the chosen network; PGD is selected first, if there is one. */
function offer(figure) {
  const [list, menu] = OF_STUDIES[figure];
  const select = document.querySelector(`select[data-figure="${figure}"][data-option="${menu}"]`);
  if (!select) return;
  const offered = DATA.studies[option(figure, "study")][list];
  select.replaceChildren(...offered.map((each, k) => new Option(each.name, k)));
  select.value = String(Math.max(0, offered.findIndex((each) => each.name === "PGD")));
}

function offerLayers() {
  const place = document.querySelector(".choose-layers div");
  if (!place) return;
  DATA.panels.forEach((panel, at) => {
    const field = document.createElement("fieldset");
    const head = document.createElement("legend");
    head.textContent = panel.title;
    field.append(head);
    for (const name of panel.layers) {
      const label = document.createElement("label");
      const box = Object.assign(document.createElement("input"), { type: "checkbox", checked: !hiddenLayers[at].has(name), value: name });
      label.append(box, ` ${name}${name === panel.layers.at(-1) && panel.layers.length > 1 ? " (output)" : ""}`);
      field.append(label);
    }
    for (const [text, checked] of [["all", true], ["none", false]]) {
      const button = Object.assign(document.createElement("button"), { type: "button", textContent: text });
      button.setAttribute("aria-label", `Choose ${text}: layers of ${panel.title}`);
      button.addEventListener("click", () => {
        field.querySelectorAll("input").forEach((box) => { box.checked = checked; });
        field.dispatchEvent(new Event("change"));
      });
      field.append(button);
    }
    field.addEventListener("change", () => {
      hiddenLayers[at] = new Set([...field.querySelectorAll("input")].filter((box) => !box.checked).map((box) => box.value));
      draw("layers");
    });
    place.append(field);
  });
}

/** Show each rule's colour beside its name. */
function paintRules() {
  const colors = new Map(DATA.panels.flatMap((panel) => panel.curves.map((curve) => [curve.rule, curve.color])));
  for (const box of document.querySelectorAll('fieldset[data-facet="rule"] input')) {
    box.parentNode.querySelector(".swatch")?.remove();
    if (!colors.has(box.value)) continue;
    const swatch = Object.assign(document.createElement("span"), { className: "swatch" });
    swatch.style.background = rgba(colors.get(box.value), 1);
    box.after(" ", swatch);
  }
}

for (const select of document.querySelectorAll("select[data-figure]")) {
  select.addEventListener("change", () => {
    if (select.dataset.option === "study") offer(select.dataset.figure);
    draw(select.dataset.figure);
  });
}
document.getElementById("each-seed")?.addEventListener("change", drawAll);
document.addEventListener("chosen", drawAll);
DARK.addEventListener("change", () => { paintRules(); drawAll(); });
addEventListener("beforeprint", () => { printing = true; drawAll(); [...waiting.keys()].forEach(drawNow); });
addEventListener("afterprint", () => { printing = false; drawAll(); });

paintRules();
Object.keys(OF_STUDIES).forEach(offer);
offerLayers();
choose();
