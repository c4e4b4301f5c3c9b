// The page's address holds the period, the zone and the overlays. Each change of it is shown anew.

import {Curve, LONG, Panel, coverage, number, unitOf} from "./chart.js";
import {
  DAY, MINUTE, age, day, describe, duration, lengthOf, localZone, midnight, moved, week, written,
} from "./period.js";

const WINDOW = 10 * MINUTE;
const SHORTEST = 30 * MINUTE, LONGEST = 36525 * DAY;
const STEP = 2; // the width of a step in pixels, at least
const MOST_SAMPLES = DAY + 120 * MINUTE; // the longest local day, in Antarctica/Troll
// The years that the date field and the server share.
const FIRST = Date.UTC(1000, 0), LAST = Date.UTC(9999, 11, 31);
const STALE = 36 * 60 * MINUTE;
const POLL = MINUTE;
const PATIENCE = 30e3;

const by = (id) => document.getElementById(id);
const iso = (moment) => new Date(moment).toISOString().replace(/(:00)?\.000Z$/, "Z");
const buttons = (name) => document.querySelectorAll(`[data-${name}]`);
const main = document.querySelector("main");

const state = {
  wanted: null, // {start, end, zone, std, samples}, as the address says
  held: {first: NaN, last: NaN, live: false}, // what Alvo holds
  units: new Map(), // of the variables that Fonte knows
  labelled: "", // the variables of Alvo when the units were asked for
  view: null, // the answer of /view that is drawn
  power: null, // that of /power-curve
  panels: new Map(), // {section, panel} of each variable; an empty variable has no panel
  curve: null,
  awaySince: null,
  pause: 1e3,
  retry: null,
  asking: new AbortController(),
};

// ---- the server

class Away extends Error {}

async function ask(route, parameters = {}) {
  const {signal: dropped} = state.asking;
  let answer, body;
  try {
    const signal = AbortSignal.any([dropped, AbortSignal.timeout(PATIENCE)]);
    answer = await fetch(`${route}?${new URLSearchParams(parameters)}`, {signal});
    body = await (answer.ok ? answer.json() : answer.json().catch(() => ({})));
  } catch (error) {
    if (dropped.aborted) throw error;
    throw new Away("no answer");
  }
  if (answer.ok) return body;
  const {status} = answer;
  throw new (status >= 500 || [408, 429].includes(status) ? Away : Error)(body.detail ?? `HTTP ${status}`);
}

const bounds = () => ({start_timestamp: iso(state.wanted.start), end_timestamp: iso(state.wanted.end)});
const zoneName = (zone) => (zone === "local" ? localZone : "UTC");

function away(error) {
  clearTimeout(state.retry);
  if (!(error instanceof Away)) {
    state.retry = setTimeout(refresh, POLL);
    return note("refused", `The server refuses this: ${error.message}.`);
  }
  state.awaySince ??= Date.now();
  const zone = state.wanted?.zone ?? "utc";
  by("away").hidden = false;
  const line = by("away").firstElementChild;
  const since = `${written(state.awaySince, zone)} ${zoneName(zone)}`;
  const told = `Alvo's API has been away since ${since}: ${error.message}. ` +
    "The values shown are older; the page tries again by itself.";
  // Unchanged text is not read out again.
  if (line.textContent !== told) line.textContent = told;
  if (state.wanted) tellAge();
  state.retry = setTimeout(refresh, state.pause);
  state.pause = Math.min(2 * state.pause, PATIENCE);
}

function back() {
  state.awaySince = null;
  state.pause = 1e3;
  by("away").hidden = true;
  note("refused", "");
  main.classList.remove("loading");
}

// ---- what is shown

async function refresh() {
  state.asking.abort();
  const current = state.asking = new AbortController();
  clearTimeout(state.retry);
  main.classList.add("loading");
  try {
    const extent = await ask("period");
    const [first, last] = [extent.first_timestamp, extent.last_timestamp].map(Date.parse);
    state.held = {first, last, live: extent.live};
    if (!state.wanted) {
      read();
      write(true);
    }
    tellControls();
    const points = Math.max(150, Math.round(main.clientWidth / STEP));
    const answers = [ask("view", {...bounds(), points}), ask("power-curve", bounds())];
    [state.view, state.power] = await Promise.all(answers);
    back();
    draw();
    tellUnitsAndSamples(current);
  } catch (error) {
    if (!current.signal.aborted) away(error);
  }
}

// The connector knows both; the curves do not wait for it.
async function tellUnitsAndSamples(current) {
  if (!state.units.size || state.labelled !== Object.keys(state.view.variables).join()) await label(current);
  if (current.signal.aborted) return;
  const told = await overlay().catch((error) => `No 1-minute samples: ${error.message}.`);
  if (!current.signal.aborted) note("samples", told);
}

async function label(current) {
  const variables = await ask("variables").catch(() => []);
  if (current.signal.aborted || !variables.length) return;
  state.labelled = Object.keys(state.view.variables).join();
  state.units = new Map(variables.filter(({unit}) => unit !== null).map(({name, unit}) => [name, unit]));
  note("units", !state.units.size ? "The units are unknown: no connector of Fonte names them." : "");
  draw();
}

// Draws the samples, and returns what there is to say of them.
async function overlay() {
  const {units, wanted} = state;
  const names = Object.keys(state.view.variables);
  if (!wanted.samples || !names.length) return "";
  if (wanted.end - wanted.start > MOST_SAMPLES) return "1-minute samples are shown for a day or less: zoom in.";
  // Fonte refuses all of them for one that it lacks.
  const had = units.size ? names.filter((name) => units.has(name)) : names;
  const lacking = names.filter((name) => !had.includes(name)).join(", ").replaceAll("_", " ");
  const told = lacking && `Fonte has no 1-minute samples of ${lacking}.`;
  if (!had.length) return told;
  const asked = [...Object.entries(bounds()), ...had.map((name) => ["columns", name])];
  const {timestamps, columns} = await ask("samples", asked);
  for (const [name, values] of Object.entries(columns)) {
    const {section, panel} = state.panels.get(name);
    if (!section.querySelector(".chart").hidden) panel.show({...panel.shown, samples: {timestamps, values}});
  }
  return timestamps.length ? told : "Fonte holds no 1-minute samples of this period.";
}

function draw() {
  const {panels, view, wanted} = state;
  const from = Date.parse(view.start_timestamp), bucket = view.bucket_s * 1e3;
  const variables = Object.entries(view.variables).sort(([one], [other]) => rank(other) - rank(one));
  main.classList.toggle("empty", !variables.some(([, {windows}]) => windows.some((count) => count)));
  if ([...panels.keys()].join() !== variables.map(([name]) => name).join()) {
    for (const {panel} of panels.values()) panel?.chart.destroy();
    by("panels").replaceChildren();
    panels.clear();
  }
  by("numbers").tBodies[0].replaceChildren();
  let cell = 0;
  for (const [name, statistics] of variables) {
    const covered = coverage({...wanted, from, bucket, statistics}, Date.now());
    cell = covered.length;
    if (!panels.has(name)) panels.set(name, {section: sectionOf(name), panel: null});
    drawPanel(name, {...wanted, from, bucket, statistics, coverage: covered.cells, samples: null});
  }
  drawCurve();
  tellPeriod(bucket, cell);
  const undrawn = wanted.std && variables.length && !variables.some(([, {std}]) => std);
  note("std", undrawn ? "mean ± std is not drawn: no variable in Alvo has both." : "");
  tellEmpty();
}

// Wind and what it drives come first, the others by name.
const rank = (name) => ["power", "wind_speed"].indexOf(name);

function sectionOf(name) {
  const section = document.createElement("section");
  section.dataset.variable = name;
  section.innerHTML = `<div class="head"><h3></h3><p class="summary"></p><p class="readout"></p></div>
    <div class="chart" tabindex="0" role="group"></div>`;
  const [title, summary] = ["title", "summary"].map((part) => `panel-${state.panels.size}-${part}`);
  section.querySelector("h3").id = title;
  section.querySelector(".summary").id = summary;
  section.querySelector(".chart").setAttribute("aria-labelledby", title);
  section.querySelector(".chart").setAttribute("aria-describedby", summary);
  by("panels").append(section);
  return section;
}

function drawPanel(name, data) {
  const entry = state.panels.get(name);
  const old = entry.panel?.shown;
  // Until the samples of this period come, those that are there stay.
  if (state.wanted.samples && old?.start === data.start && old.end === data.end) data.samples = old.samples;
  describePanel(name, entry.section, totals(data));
  const root = entry.section.querySelector(".chart");
  if (root.hidden) {
    entry.section.querySelector(".readout").textContent = "";
    return;
  }
  if (entry.panel) return entry.panel.show(data);
  const tell = readout(entry.section, (index) => readoutOf(entry.panel.shown, index, unitOf(state.units.get(name))));
  entry.panel = new Panel(root, data, zoom, tell);
  root.addEventListener("keydown", (event) => key(event, entry.panel, KEYS));
}

// Returns a function that tells the values under a chart's cursor.
function readout(section, text) {
  const line = section.querySelector(".readout"), chart = section.querySelector(".chart");
  // All panels tell the values under the cursor; only the one in focus is read out.
  chart.addEventListener("focus", () => { line.ariaLive = "polite"; });
  chart.addEventListener("blur", () => { line.ariaLive = "off"; });
  // The panels share the cursor with one that is hidden and holds the values of an earlier period.
  return (index) => { line.textContent = index === null || chart.hidden ? "" : text(index); };
}

function readoutOf({statistics: {mean, min, max, std, windows}, from, bucket, zone}, index, unit) {
  const moment = written(from + index * bucket, zone);
  if (!windows[index]) return `${moment}: no window`;
  const parts = [["mean", mean], ["min", min], ["max", max], ["std", std]].filter(([, values]) => values);
  const told = parts.map(([what, values]) => `${what} ${number(values[index])}`).join(", ");
  return `${moment}: ${told} ${unit}` + (bucket > WINDOW ? `, ${windows[index]} windows` : "");
}

// Of the whole period; each window with a mean weighs the same.
function totals({statistics: {mean, min = [], max = [], std, means}, coverage: cells}) {
  const known = (values) => values.filter((value) => value !== null);
  // The weighted mean of what a function gives of the buckets that have all these values.
  const average = (lists, value) => {
    if (!lists.every(Boolean)) return null;
    const found = [...means.keys()].filter((i) => lists.every((list) => list[i] !== null));
    const weight = found.reduce((sum, i) => sum + means[i], 0);
    return weight ? found.reduce((sum, i) => sum + value(i) * (means[i] / weight), 0) : null;
  };
  const center = average([mean, std], (i) => mean[i]);
  const variance = average([mean, std], (i) => std[i] ** 2 + (mean[i] - center) ** 2);
  const sum = (what) => cells.reduce((total, cell) => total + cell[what], 0);
  return {
    mean: average([mean], (i) => mean[i]),
    min: known(min).reduce((least, value) => (least === null ? value : Math.min(least, value)), null),
    max: known(max).reduce((most, value) => (most === null ? value : Math.max(most, value)), null),
    std: variance === null ? null : Math.sqrt(variance),
    found: sum("found"),
    expected: sum("expected"),
  };
}

const titleOf = (name) => {
  const unit = unitOf(state.units.get(name));
  return name.replaceAll("_", " ") + (unit && ` (${unit})`);
};

function describePanel(name, section, {mean, min, max, std, found, expected}) {
  const unit = unitOf(state.units.get(name));
  const percent = expected ? `${(Math.floor((1000 * found) / expected) / 10).toFixed(1)} %` : "none expected";
  const windows = `${found.toLocaleString("en")} of ${expected.toLocaleString("en")}`;
  const drawable = [mean, min, max].some((value) => value !== null);
  section.querySelector("h3").textContent = titleOf(name);
  const chart = section.querySelector(".chart");
  // The keys work on, and the focus is not lost.
  if (!drawable && document.activeElement === chart) by("next").focus();
  chart.hidden = !drawable;
  section.querySelector(".summary").textContent = drawable
    ? `mean ${number(mean)}, min ${number(min)}, max ${number(max)} ${unit}; ${windows} windows (${percent})`
    : `${found ? "no mean, minimum or maximum" : "no values"}; ${windows} windows`;
  const row = by("numbers").tBodies[0].insertRow();
  const head = document.createElement("th");
  head.scope = "row";
  head.textContent = titleOf(name);
  row.append(head);
  for (const text of [...[mean, min, max, std].map(number), windows, percent]) row.insertCell().textContent = text;
}

function drawCurve() {
  const {windows} = state.power;
  const section = by("curve"), root = section.querySelector(".chart");
  const labels = {x: titleOf("wind_speed"), y: titleOf("power")};
  const count = windows.reduce((sum, each) => sum + each, 0);
  section.querySelector(".summary").textContent = !count ? "No window of this period has both."
    : `Means of ${count.toLocaleString("en")} windows` +
      (count > windows.length ? "; a larger point stands for several." : "");
  root.hidden = !count;
  if (!count) return;
  if (state.curve) return state.curve.show(state.power, labels);
  state.curve = new Curve(root, state.power, labels, readout(section, pointOf));
  root.addEventListener("keydown", (event) => key(event, state.curve, {}));
}

function pointOf(index) {
  const {wind_speed: x, power: y, windows} = state.power;
  const [wind, power] = [["wind_speed", x], ["power", y]].map(([name, values]) =>
    `${name.replace("_", " ")} ${number(values[index])} ${unitOf(state.units.get(name))}`.trim());
  return `${wind}, ${power}` + (windows[index] > 1 ? `: ${windows[index].toLocaleString("en")} windows` : "");
}

// ---- what is told

function tellControls() {
  const {held, wanted} = state;
  const all = Number.isNaN(held.first) ? null : allHeld();
  const length = lengthOf(wanted, wanted.zone, all);
  for (const button of buttons("length")) button.setAttribute("aria-pressed", button.dataset.length === length);
  for (const button of buttons("zone")) button.setAttribute("aria-pressed", button.dataset.zone === wanted.zone);
  document.querySelector("[data-zone=local]").title = localZone;
  document.querySelector("[data-length=all]").disabled = !all;
  // A date that is being typed stays.
  if (document.activeElement !== by("date")) by("date").value = written(wanted.start, wanted.zone).slice(0, 10);
  by("samples").checked = wanted.samples;
  by("in").disabled = wanted.end - wanted.start <= SHORTEST;
  by("out").disabled = wanted.end - wanted.start >= LONGEST;
  by("csv").hidden = !all;
  by("csv").href = `data?${new URLSearchParams({format: "csv", ...bounds()})}`;
  by("csv").download = `alvo_${iso(wanted.start)}_${iso(wanted.end)}.csv`.replaceAll(":", "");
  by("link").href = location.href;
  document.querySelector("#legend .samples").hidden = !wanted.samples || wanted.end - wanted.start > MOST_SAMPLES;
  tellAge();
}

// Old values are an alarm only where they once came in time: a demo or an archive was never alive.
function tellAge() {
  const {held, wanted} = state;
  const all = !Number.isNaN(held.first);
  const old = Date.now() - (held.last + WINDOW);
  const newest = `Newest value: ${written(held.last || 0, wanted.zone)} ${zoneName(wanted.zone)}`;
  by("age").textContent = !all ? "Alvo holds no values yet: python etl.py DATE loads a day"
    : newest + (held.live ? `, ${age(Math.max(old, 0))} ago` : "");
  by("age").classList.toggle("stale", !all || (held.live && old > STALE));
}

function tellPeriod(bucket, cell) {
  const {std, zone} = state.wanted;
  const long = bucket > LONG;
  by("period").textContent = describe(state.wanted, zone);
  by("reduction").textContent = `in steps of ${duration(bucket)}`;
  by("std").checked = std || long;
  by("std").disabled = long;
  const told = {band: !long, spread: long, edge: long, std: std && !long};
  for (const [name, is] of Object.entries(told)) document.querySelector(`#legend .${name}`).hidden = !is;
  by("cell").textContent = duration(cell);
}

function note(what, text, ...more) {
  const id = `note-${what}`;
  const line = document.createElement("p");
  line.id = id;
  line.append(text, ...more);
  // An unchanged note is not read out again, and keeps the focus.
  if (by(id)?.isEqualNode(line)) return;
  by(id)?.remove();
  if (text) by("notes").append(line);
}

function tellEmpty() {
  const {view, wanted} = state;
  const offers = [["Go back to", view.previous_timestamp], ["Go on to", view.next_timestamp]];
  const buttons = offers.filter(([, moment]) => moment).map(([words, timestamp]) => {
    const button = document.createElement("button");
    const moment = Date.parse(timestamp);
    button.type = "button";
    button.textContent = `${words} ${written(moment, wanted.zone).slice(0, 10)}`;
    button.addEventListener("click", () => goTo(moment));
    return button;
  });
  note("empty", main.classList.contains("empty") ? "Alvo holds no values of this period." : "", ...buttons);
}

// ---- the address

function read() {
  const said = new URLSearchParams(location.hash.slice(1));
  const zone = said.get("zone") === "local" ? "local" : "utc";
  const [start, end] = [Date.parse(said.get("start")), Date.parse(said.get("end"))];
  const newest = day(Number.isNaN(state.held.last) ? Date.now() : state.held.last, zone);
  const period = start < end ? {start, end} : newest;
  state.wanted = {...period, zone, std: said.get("std") === "1", samples: said.get("samples") === "1"};
}

function write(replace) {
  const {start, end, zone, std, samples} = state.wanted;
  const said = [`start=${iso(start)}`, `end=${iso(end)}`, `zone=${zone}`];
  const hash = "#" + said.concat(std ? "std=1" : [], samples ? "samples=1" : []).join("&");
  if (hash !== location.hash) history[replace ? "replaceState" : "pushState"](null, "", hash);
}

function go(change, replace = false) {
  const {start = FIRST, end = LAST} = change;
  if (!(start >= FIRST && end <= LAST)) return;
  state.wanted = {...state.wanted, ...change};
  write(replace);
  tellControls();
  refresh();
}

// To the day of a moment, or its week where a week is shown.
function goTo(moment) {
  const {zone} = state.wanted;
  go(lengthOf(state.wanted, zone, null) === "week" ? week(moment, zone) : day(moment, zone));
}

// ---- the controls

function zoom(start, end) {
  const middle = (start + end) / 2, half = Math.max(end - start, SHORTEST) / 2;
  const [first, last] = [middle - half, middle + half].map((bound) => Math.round(bound / WINDOW) * WINDOW);
  go({start: first, end: last});
}

function scale(factor) {
  const {start, end} = state.wanted;
  const middle = (start + end) / 2, half = ((end - start) / 2) * factor;
  zoom(middle - half, middle + half);
}

const allHeld = () => ({start: state.held.first, end: state.held.last + WINDOW});
const move = (direction) => go(moved(state.wanted, state.wanted.zone, allHeld(), direction));

const KEYS = {
  ArrowLeft: () => move(-1),
  ArrowRight: () => move(1),
  "+": () => by("in").click(),
  "=": () => by("in").click(),
  "-": () => by("out").click(),
  Home: () => go(allHeld()),
};

function key(event, chart, keys) {
  const step = event.shiftKey && {ArrowLeft: -1, ArrowRight: 1}[event.key];
  const action = step ? () => chart.step(step) : keys[event.key];
  if (!action || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  action();
}

// Before the first answer there is nothing to control.
function on(target, type, action) {
  target.addEventListener(type, (event) => { if (state.wanted) action(event); });
}

for (const button of buttons("length")) {
  on(button, "click", () => {
    const {held, wanted: {start, end, zone}} = state;
    const middle = (start + end) / 2;
    const moment = Math.min(Math.max(middle, held.first || middle), held.last || middle);
    go({day: () => day(moment, zone), week: () => week(moment, zone), all: allHeld}[button.dataset.length]());
  });
}
for (const button of buttons("zone")) {
  on(button, "click", () => {
    const {start, end, zone: from} = state.wanted, zone = button.dataset.zone;
    // A day stays the day of that date, and so does a week.
    const same = (moment) => midnight(momentOf(written(moment, from).replace(" ", "T"), zone), zone);
    go({zone, ...(lengthOf(state.wanted, from, null) && {start: same(start), end: same(end)})}, true);
  });
}
on(by("previous"), "click", () => move(-1));
on(by("next"), "click", () => move(1));
on(by("in"), "click", () => scale(0.5));
on(by("out"), "click", () => scale(2));
on(by("std"), "change", () => go({std: by("std").checked}, true));
on(by("samples"), "change", () => go({samples: by("samples").checked}, true));

const momentOf = (text, zone) => Date.parse(text + (zone === "utc" ? "Z" : ""));

function goToDate(text) {
  const {zone} = state.wanted;
  const moment = momentOf(`${text}T00:00`, zone);
  // Date.parse takes 2024-02-30 for a day of March.
  if (moment >= FIRST && written(moment, zone).slice(0, 10) === text) goTo(moment);
}

on(by("date"), "input", () => goToDate(by("date").value));
on(by("date"), "blur", tellControls);
on(by("calendar"), "change", () => goToDate(by("calendar").value));
on(by("pick"), "click", () => {
  by("calendar").value = by("date").value;
  by("calendar").showPicker();
});
on(by("link"), "click", async (event) => {
  event.preventDefault();
  // Browsers give pages a clipboard over HTTPS and on this machine alone.
  const copied = navigator.clipboard?.writeText(location.href).then(() => "Link copied");
  by("link").textContent = await copied?.catch(() => null) ?? "Copy the address of this page";
  setTimeout(() => { by("link").textContent = "Copy link"; }, 4e3);
});
by("away").querySelector("button").addEventListener("click", refresh);
on(window, "popstate", () => {
  read();
  refresh();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  for (const {panel} of state.panels.values()) panel?.chart.redraw();
  state.curve?.chart.redraw();
});

// New values appear without a reload, and so does the note that the API is away.
function poll() {
  if (!document.hidden && !main.classList.contains("loading")) refresh();
}
setInterval(poll, POLL);
document.addEventListener("visibilitychange", poll);

refresh();
