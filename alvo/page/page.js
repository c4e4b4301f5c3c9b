// The page's state is in its address: the period, the zone and what is overlaid. Each change of it is shown from anew.

import {Curve, Panel, coverage, number, unitOf} from "./chart.js";
import {DAY, MINUTE, age, day, describe, duration, lengthOf, localZone, midnight, moved, week, written} from "./period.js";

const WINDOW = 10 * MINUTE;
const SHORTEST = 30 * MINUTE, LONGEST = 36525 * DAY;
const STEP = 2; // the width of a step in pixels, at least
const MOST_SAMPLES = DAY + 60 * MINUTE; // the longest local day
// The years that a date field and the server share.
const FIRST = Date.UTC(1000, 0), LAST = Date.UTC(9999, 11, 31);
const STALE = 36 * 60 * MINUTE;
const POLL = MINUTE;
const PATIENCE = 30e3;
const LONGEST_PAUSE = 30e3;

const by = (id) => document.getElementById(id);
const iso = (moment) => new Date(moment).toISOString().replace(/(:00)?\.000Z$/, "Z");
const buttons = (name) => document.querySelectorAll(`[data-${name}]`);

let state = null; // {start, end, zone, std, samples}
let held = {first: null, last: null}; // what Alvo holds
let units = new Map(); // of the variables that Fonte knows
let shown = null; // the answer of /view that is drawn
let curve = null;
let awaySince = null;
let pause = 1e3;
let retry = null;
let asking = new AbortController();
const panels = new Map();

// ---- the server

class Away extends Error {}

async function ask(route, parameters = {}) {
  const {signal: dropped} = asking;
  let answer;
  try {
    const signal = AbortSignal.any([dropped, AbortSignal.timeout(PATIENCE)]);
    answer = await fetch(`${route}?${new URLSearchParams(parameters)}`, {signal});
  } catch (error) {
    if (dropped.aborted) throw error;
    throw new Away("no answer");
  }
  if (answer.ok) return answer.json();
  const {detail} = await answer.json().catch(() => ({}));
  throw new (answer.status >= 500 ? Away : Error)(detail ?? `HTTP ${answer.status}`);
}

const bounds = () => ({start_timestamp: iso(state.start), end_timestamp: iso(state.end)});

function away(error) {
  if (!(error instanceof Away)) return note("refused", `The server refuses this: ${error.message}.`);
  awaySince ??= Date.now();
  by("away").hidden = false;
  by("away").firstElementChild.textContent =
    `Alvo's API has been away since ${written(awaySince, state?.zone ?? "utc")} ${state?.zone === "local" ? localZone : "UTC"}: ` +
    `${error.message}. What is drawn is older; the page tries again by itself.`;
  clearTimeout(retry);
  retry = setTimeout(refresh, pause);
  pause = Math.min(2 * pause, LONGEST_PAUSE);
}

function back() {
  awaySince = null;
  pause = 1e3;
  by("away").hidden = true;
  note("refused", "");
  document.querySelector("main").classList.remove("loading");
}

// ---- what is shown

async function refresh() {
  asking.abort();
  asking = new AbortController();
  const current = asking;
  clearTimeout(retry);
  document.querySelector("main").classList.add("loading");
  try {
    const extent = await ask("period");
    held = {first: Date.parse(extent.first_timestamp), last: Date.parse(extent.last_timestamp)};
    if (!state) {
      read();
      write(true);
    }
    tellControls();
    const points = Math.max(150, Math.round(by("panels").clientWidth / STEP));
    const [view, power] = await Promise.all([ask("view", {...bounds(), points}), ask("power-curve", bounds())]);
    [shown, curve] = [view, power];
    back();
    draw();
    tellUnitsAndSamples(current);
  } catch (error) {
    if (!current.signal.aborted) away(error);
  }
}

// The connector knows both; the curves do not wait for it.
async function tellUnitsAndSamples(current) {
  if (!units.size) await label(current);
  if (current.signal.aborted) return;
  const told = await overlay().catch((error) => `No 1-minute samples: ${error.message}.`);
  if (!current.signal.aborted) note("samples", told);
}

async function label(current) {
  const variables = await ask("variables").catch(() => []);
  if (current.signal.aborted) return;
  units = new Map(variables.filter(({unit}) => unit !== null).map(({name, unit}) => [name, unit]));
  note("units", variables.length && !units.size ? "The units are unknown: Fonte's connector does not tell them." : "");
  draw();
}

// Draws the samples, and returns what there is to say of them.
async function overlay() {
  const names = Object.keys(shown.variables);
  if (!state.samples || !names.length) return "";
  if (state.end - state.start > MOST_SAMPLES) return "1-minute samples are shown for a day or less: zoom in.";
  // Fonte refuses all of them for one that it lacks.
  const had = units.size ? names.filter((name) => units.has(name)) : names;
  const lacking = names.filter((name) => !had.includes(name)).join(", ").replaceAll("_", " ");
  const told = lacking && `Fonte has no 1-minute samples of ${lacking}.`;
  if (!had.length) return told;
  const {timestamps, columns} = await ask("samples", [...Object.entries(bounds()), ...had.map((name) => ["columns", name])]);
  for (const [name, values] of Object.entries(columns)) {
    const panel = panels.get(name);
    panel.show({...panel.shown, samples: {timestamps, values}});
  }
  return timestamps.length ? told : "Fonte holds no 1-minute samples of this period.";
}

function draw() {
  const from = Date.parse(shown.start_timestamp), bucket = shown.bucket_s * 1e3;
  const variables = Object.entries(shown.variables).sort(([one], [other]) => rank(other) - rank(one));
  if ([...panels.keys()].join() !== variables.map(([name]) => name).join()) {
    by("panels").replaceChildren();
    panels.clear();
  }
  by("numbers").tBodies[0].replaceChildren();
  let cell = 0;
  for (const [name, statistics] of variables) {
    const unit = unitOf(units.get(name));
    const old = panels.get(name)?.shown;
    const data = {...state, from, bucket, statistics, label: unit, samples: null};
    if (state.samples && old?.start === state.start && old?.end === state.end) data.samples = old.samples;
    const covered = coverage(data, Date.now());
    Object.assign(data, {coverage: covered.cells, total: totals(statistics, covered.cells)});
    cell = covered.length;
    if (panels.has(name)) panels.get(name).show(data);
    else panels.set(name, panelOf(name, data));
    describePanel(name, unit, data.total);
  }
  drawCurve();
  tellPeriod(bucket, cell);
  const undrawn = state.std && variables.length && !variables.some(([, {std}]) => std);
  note("std", undrawn ? "mean ± std is not drawn: Alvo holds both of no variable." : "");
  tellEmpty();
}

// Wind and what it drives come first, the others by name.
const rank = (name) => ["power", "wind_speed"].indexOf(name);

function panelOf(name, data) {
  const section = document.createElement("section");
  section.dataset.variable = name;
  section.innerHTML = `<div class="head"><h3></h3><p class="summary"></p><p class="readout"></p></div>
    <div class="chart" tabindex="0" role="group"></div>`;
  const [title, summary] = ["title", "summary"].map((part) => `panel-${panels.size}-${part}`);
  section.querySelector("h3").id = title;
  section.querySelector(".summary").id = summary;
  const chart = section.querySelector(".chart");
  chart.setAttribute("aria-labelledby", title);
  chart.setAttribute("aria-describedby", summary);
  by("panels").append(section);
  const readout = section.querySelector(".readout");
  const panel = new Panel(chart, data, zoom, (index) => { readout.textContent = index === null ? "" : readoutOf(name, index); });
  chart.addEventListener("keydown", (event) => key(event, panel));
  // All panels tell the values under the cursor; only the one in focus is read out.
  chart.addEventListener("focus", () => { readout.ariaLive = "polite"; });
  chart.addEventListener("blur", () => { readout.ariaLive = "off"; });
  return panel;
}

function readoutOf(name, index) {
  const {statistics: {mean, min, max, std, windows}, from, bucket, zone} = panels.get(name).shown;
  const moment = written(from + index * bucket, zone);
  if (!windows[index]) return `${moment}: no window`;
  const parts = [["mean", mean], ["min", min], ["max", max], ["std", state.std && std]];
  const told = parts.filter(([, values]) => values).map(([what, values]) => `${what} ${number(values[index])}`).join(", ");
  return `${moment}: ${told} ${unitOf(units.get(name))}` + (bucket > WINDOW ? `, ${windows[index]} windows` : "");
}

// Of the whole period; each window weighs the same.
function totals({mean = [], min = [], max = [], windows}, cells) {
  const known = (values) => values.filter((value) => value !== null);
  const weights = windows.filter((_, i) => (mean[i] ?? null) !== null);
  const weight = weights.reduce((sum, count) => sum + count, 0);
  const sum = (list, what) => list.reduce((total, each) => total + each[what], 0);
  return {
    mean: weight ? known(mean).reduce((total, value, i) => total + value * (weights[i] / weight), 0) : null,
    min: known(min).reduce((least, value) => (least === null ? value : Math.min(least, value)), null),
    max: known(max).reduce((most, value) => (most === null ? value : Math.max(most, value)), null),
    found: sum(cells, "found"),
    expected: sum(cells, "expected"),
  };
}

function describePanel(name, unit, {mean, min, max, found, expected}) {
  const section = by("panels").querySelector(`[data-variable="${CSS.escape(name)}"]`);
  section.querySelector("h3").textContent = name.replaceAll("_", " ") + (unit && ` (${unit})`);
  const percent = expected ? `${(Math.floor((1000 * found) / expected) / 10).toFixed(1)} %` : "none expected";
  const windows = `${found.toLocaleString("en")} of ${expected.toLocaleString("en")}`;
  section.querySelector(".summary").textContent = found
    ? `mean ${number(mean)}, min ${number(min)}, max ${number(max)} ${unit}; ${windows} windows (${percent})`
    : `no values; 0 of ${expected.toLocaleString("en")} windows`;
  const row = by("numbers").tBodies[0].insertRow();
  const head = document.createElement("th");
  head.scope = "row";
  head.textContent = section.querySelector("h3").textContent;
  row.append(head);
  for (const text of [number(mean), number(min), number(max), windows, percent]) row.insertCell().textContent = text;
}

function drawCurve() {
  const root = by("curve").querySelector(".chart");
  const axes = ["wind_speed", "power"].map((name) => name.replace("_", " ") + (units.get(name) ? ` (${unitOf(units.get(name))})` : ""));
  const labels = {x: axes[0], y: axes[1]};
  drawCurve.chart ??= new Curve(root, labels);
  drawCurve.chart.show(curve, labels);
  const count = curve.windows.reduce((sum, windows) => sum + windows, 0), points = curve.windows.length;
  by("curve-summary").textContent = !count ? "No window of this period has both."
    : `Means of ${count.toLocaleString("en")} windows` +
      (count > points ? `, drawn as ${points.toLocaleString("en")} points: those of one cell of an 80 by 80 grid are one, larger point.` : ", a point each.");
}

// ---- what is told

function tellControls() {
  const all = Number.isNaN(held.first) ? null : {start: held.first, end: held.last + WINDOW};
  const length = lengthOf(state, state.zone, all);
  for (const button of buttons("length")) button.setAttribute("aria-pressed", button.dataset.length === length);
  for (const button of buttons("zone")) button.setAttribute("aria-pressed", button.dataset.zone === state.zone);
  document.querySelector("[data-zone=local]").title = localZone;
  document.querySelector("[data-length=all]").disabled = !all;
  by("date").value = written(state.start, state.zone).slice(0, 10);
  by("std").checked = state.std;
  by("samples").checked = state.samples;
  by("in").disabled = state.end - state.start <= SHORTEST;
  by("out").disabled = state.end - state.start >= LONGEST;
  by("period").textContent = describe(state, state.zone, length);
  by("link").href = location.href;
  document.querySelector("#legend .std").hidden = !state.std;
  document.querySelector("#legend .samples").hidden = !state.samples || state.end - state.start > MOST_SAMPLES;
  const old = Date.now() - (held.last + WINDOW);
  by("age").textContent = all ? `Newest value: ${written(held.last, state.zone)} ${state.zone === "utc" ? "UTC" : localZone}, ${age(Math.max(old, 0))} ago`
    : "Alvo holds no values yet: python etl.py DATE loads a day";
  by("age").classList.toggle("stale", !all || old > STALE);
}

function tellPeriod(bucket, cell) {
  by("reduction").textContent = bucket === WINDOW
    ? "Each step is a 10-minute window: its mean, in the band from its minimum to its maximum."
    : `Reduced for this screen: each step stands for ${duration(bucket)}, the line for the mean of its windows' means, ` +
      "the band for their lowest minimum to their highest maximum" +
      (state.std ? ", std for that of all its samples, every window weighing the same." : ".");
  by("cell").textContent = duration(cell);
  const signals = Object.entries(shown.variables).flatMap(([name, statistics]) =>
    ["mean", "min", "max", ...(state.std ? ["std"] : [])].filter((each) => statistics[each]).map((each) => ["signals", `${name}_${each}`]));
  const csv = by("csv");
  csv.hidden = !signals.length; // without a name, all of them would come
  csv.href = `data?${new URLSearchParams([["format", "csv"], ...Object.entries(bounds()), ...signals])}`;
  csv.download = `alvo_${iso(state.start)}_${iso(state.end)}.csv`.replaceAll(":", "");
}

function note(what, text, ...more) {
  const id = `note-${what}`;
  const line = document.createElement("p");
  line.id = id;
  line.append(text, ...more);
  // What stays the same is not read out again, and keeps the focus.
  if (by(id)?.isEqualNode(line)) return;
  by(id)?.remove();
  if (text) by("notes").append(line);
}

function tellEmpty() {
  const found = Object.values(shown.variables).some(({windows}) => windows.some((count) => count));
  const offers = [["Go back to", shown.previous_timestamp], ["Go on to", shown.next_timestamp]].filter(([, moment]) => moment);
  note("empty", found ? "" : "Alvo holds no values of this period.", ...offers.map(([words, timestamp]) => {
    const button = document.createElement("button");
    const moment = Date.parse(timestamp);
    button.type = "button";
    button.textContent = `${words} ${written(moment, state.zone).slice(0, 10)}`;
    button.addEventListener("click", () => go(lengthOf(state, state.zone, null) === "week" ? week(moment, state.zone) : day(moment, state.zone)));
    return button;
  }));
}

// ---- the address

function read() {
  const said = new URLSearchParams(location.hash.slice(1));
  const zone = said.get("zone") === "local" ? "local" : "utc";
  const [start, end] = [Date.parse(said.get("start")), Date.parse(said.get("end"))];
  const newest = day(Number.isNaN(held.last) ? Date.now() : held.last, zone);
  const period = start < end ? {start, end} : newest;
  state = {...period, zone, std: said.get("std") === "1", samples: said.get("samples") === "1"};
}

function write(replace) {
  const {start, end, zone, std, samples} = state;
  const said = [`start=${iso(start)}`, `end=${iso(end)}`, `zone=${zone}`];
  const hash = "#" + said.concat(std ? "std=1" : [], samples ? "samples=1" : []).join("&");
  if (hash !== location.hash) history[replace ? "replaceState" : "pushState"](null, "", hash);
}

function go(change, replace = false) {
  const {start = FIRST, end = LAST} = change;
  if (!(start >= FIRST && end <= LAST)) return;
  state = {...state, ...change};
  write(replace);
  tellControls();
  refresh();
}

// ---- the controls

function zoom(start, end) {
  const middle = (start + end) / 2, half = Math.max(end - start, SHORTEST) / 2;
  go({start: Math.round((middle - half) / WINDOW) * WINDOW, end: Math.round((middle + half) / WINDOW) * WINDOW});
}

function scale(factor) {
  const middle = (state.start + state.end) / 2, half = ((state.end - state.start) / 2) * factor;
  zoom(middle - half, middle + half);
}

const all = () => ({start: held.first, end: held.last + WINDOW});
const move = (direction) => go(moved(state, state.zone, all(), direction));

const KEYS = {
  ArrowLeft: () => move(-1), ArrowRight: () => move(1), "+": () => by("in").click(), "=": () => by("in").click(), "-": () => by("out").click(),
  Home: () => go(all()),
};

function key(event, panel) {
  const step = event.shiftKey && {ArrowLeft: -1, ArrowRight: 1}[event.key];
  const action = step ? () => panel.step(step) : KEYS[event.key];
  if (!action || !state || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  action();
}

function ready(action) {
  return (event) => { if (state) action(event); };
}

for (const button of buttons("length")) {
  button.addEventListener("click", ready(() => {
    const middle = (state.start + state.end) / 2;
    const moment = Math.min(Math.max(middle, held.first || middle), held.last || middle);
    go({day: () => day(moment, state.zone), week: () => week(moment, state.zone), all}[button.dataset.length]());
  }));
}
for (const button of buttons("zone")) {
  button.addEventListener("click", ready(() => {
    const zone = button.dataset.zone, length = lengthOf(state, state.zone, null);
    // A day stays the day of that date, and so does a week.
    const offset = (from, to, moment) => Date.parse(`${written(moment, from).replace(" ", "T")}${to === "utc" ? "Z" : ""}`);
    const kept = length ? {start: midnight(offset(state.zone, zone, state.start), zone), end: midnight(offset(state.zone, zone, state.end), zone)} : {};
    go({zone, ...kept}, true);
  }));
}
by("previous").addEventListener("click", ready(() => move(-1)));
by("next").addEventListener("click", ready(() => move(1)));
by("in").addEventListener("click", ready(() => scale(0.5)));
by("out").addEventListener("click", ready(() => scale(2)));
by("std").addEventListener("change", ready(() => go({std: by("std").checked}, true)));
by("samples").addEventListener("change", ready(() => go({samples: by("samples").checked}, true)));
by("date").addEventListener("change", ready(() => {
  const moment = Date.parse(`${by("date").value}T00:00${state.zone === "utc" ? "Z" : ""}`);
  // Who types 2024 comes by the years 2, 20 and 202.
  if (moment >= FIRST) go(lengthOf(state, state.zone, null) === "week" ? week(moment, state.zone) : day(moment, state.zone));
}));
by("away").querySelector("button").addEventListener("click", refresh);
addEventListener("popstate", ready(() => { read(); refresh(); }));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  for (const {chart} of [...panels.values(), drawCurve.chart]) chart?.redraw();
});

// What the ETL loads meanwhile appears by itself; so does it when the API is away.
function poll() {
  const busy = document.querySelector("main").classList.contains("loading");
  if (!document.hidden && !busy) refresh();
}
setInterval(poll, POLL);
document.addEventListener("visibilitychange", poll);

refresh();
