// The charts: a panel per variable, and power against wind speed. What is drawn is told as text beside it, too.

import {DAY, HOUR, written} from "./period.js";

const {uPlot} = window;
const FONT = '12px system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", Arial, sans-serif';
const STRIP = 7; // height of the coverage strip

const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const UNITS = {degC: "°C"};
export const unitOf = (unit) => UNITS[unit] ?? unit ?? "";

export function number(value) {
  if (value === null || value === undefined) return "none";
  const large = Math.abs(value) >= 1e6 || (value !== 0 && Math.abs(value) < 1e-4);
  return large ? value.toExponential(3) : value.toLocaleString("en", {maximumSignificantDigits: 4});
}

// Two lines: the time or the day, and below it, where it changes, what that belongs to.
function timeLabels({zone, end}, ticks, increment) {
  let above = null;
  return ticks.map((tick) => {
    if (tick * 1000 >= end) return ""; // would be cut off
    const text = written(tick * 1000, zone);
    const [label, context] = increment * 1000 < DAY ? [text.slice(11), text.slice(0, 10)] : [text.slice(5, 10), text.slice(0, 4)];
    const lines = context === above ? label : `${label}\n${context}`;
    above = context;
    return lines;
  });
}

const axis = (more) => ({
  stroke: () => color("muted"),
  font: FONT,
  labelFont: FONT,
  grid: {stroke: () => color("grid"), width: 1},
  ticks: {stroke: () => color("grid"), width: 1, size: 5},
  ...more,
});

const valueAxis = (label) => axis({
  scale: "y", size: 58, label, labelSize: 20,
  values: (_, ticks) => ticks.map((tick) => (Math.abs(tick) < 1e6 ? tick.toLocaleString("en") : tick.toExponential(1))),
});

const padded = (_, low, high) => (low === null ? [0, 1] : uPlot.rangeNum(low, high, 0.1, true));

// uPlot scales, and draws axes and cursor; the curves are drawn here, so that a step is as long as its bucket.
const undrawn = (label) => ({label, paths: () => null, points: {show: false}});

// The panels share the cursor, and nothing else: a selection is one panel's.
const SYNC = {key: "time", setSeries: false, filters: {pub: (type) => type === "mousemove" || type === "mouseleave"}};

function sized(root, chart) {
  new ResizeObserver(() => chart.setSize({width: root.clientWidth, height: root.clientHeight})).observe(root);
}

// uPlot listens to a mouse alone.
const MOUSE = {pointerdown: "mousedown", pointermove: "mousemove", pointerup: "mouseup", pointercancel: "mouseup"};

function touched({over}) {
  for (const [type, mouse] of Object.entries(MOUSE)) {
    over.addEventListener(type, ({pointerType, clientX, clientY}) => {
      if (pointerType === "mouse") return;
      over.dispatchEvent(new MouseEvent(mouse, {bubbles: true, clientX, clientY, movementX: 1}));
    });
  }
}

function within(u, draw) {
  const {ctx, bbox} = u;
  ctx.save();
  ctx.beginPath();
  ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
  ctx.clip();
  draw(ctx);
  ctx.restore();
}

// A panel of one variable. `shown` is what is drawn: {zone, start, end, bucket, from, statistics, samples, std, label}.
export class Panel {
  constructor(root, shown, onZoom, onPoint) {
    this.shown = shown;
    this.chart = new uPlot({
      width: root.clientWidth,
      height: root.clientHeight,
      padding: [STRIP + 8, 8, 0, 0],
      legend: {show: false},
      tzDate: (seconds) => (this.shown.zone === "utc" ? uPlot.tzDate(new Date(seconds * 1e3), "Etc/UTC") : new Date(seconds * 1e3)),
      cursor: {y: false, points: {show: false}, sync: SYNC, drag: {x: true, y: false, setScale: false}},
      scales: {
        x: {time: true, range: () => [this.shown.start / 1e3, this.shown.end / 1e3]},
        y: {range: padded},
      },
      axes: [
        axis({size: 42, values: (u, ticks, index, space, increment) => timeLabels(this.shown, ticks, increment)}),
        valueAxis(() => this.shown.label),
      ],
      series: [{}, undrawn("mean"), undrawn("min"), undrawn("max"), undrawn("mean - std"), undrawn("mean + std")],
      hooks: {
        draw: [(u) => this.draw(u)],
        setSelect: [(u) => {
          const {left, width} = u.select;
          if (width < 4) return;
          u.setSelect({left: 0, top: 0, width: 0, height: 0}, false);
          onZoom(u.posToVal(left, "x") * 1e3, u.posToVal(left + width, "x") * 1e3);
        }],
        setCursor: [(u) => onPoint(u.cursor.left < 0 ? null : u.cursor.idx)],
      },
    }, this.columns(), root);
    sized(root, this.chart);
    touched(this.chart);
  }

  show(shown) {
    this.shown = shown;
    this.chart.setData(this.columns());
  }

  // Moves the cursor by a bucket; the first step is onto the period's first or last one.
  step(direction) {
    const {cursor, data: [middles]} = this.chart;
    const last = middles.length - 1;
    const index = cursor.left < 0 ? (direction < 0 ? last : 0) : Math.min(Math.max(cursor.idx + direction, 0), last);
    this.chart.setCursor({left: this.chart.valToPos(middles[index], "x"), top: 0});
  }

  columns() {
    const {from, bucket, statistics: {windows, mean, min, max, std}, std: wanted} = this.shown;
    const empty = windows.map(() => null);
    const off = (sign) => mean.map((value, i) => (value === null || std[i] === null ? null : value + sign * std[i]));
    return [
      windows.map((_, i) => (from + (i + 0.5) * bucket) / 1e3),
      mean ?? empty, min ?? empty, max ?? empty,
      ...(wanted && mean && std ? [off(-1), off(1)] : [empty, empty]),
    ];
  }

  draw(u) {
    const {from, bucket, samples} = this.shown;
    const [, mean, min, max, low, high] = u.data;
    const x = (i) => Math.round(u.valToPos((from + i * bucket) / 1e3, "x", true));
    const y = (value) => u.valToPos(value, "y", true);
    const ratio = uPlot.pxRatio;
    within(u, (ctx) => {
      ctx.fillStyle = color("band");
      max.forEach((top, i) => {
        if (top === null || min[i] === null) return;
        ctx.fillRect(x(i), y(top), Math.max(x(i + 1) - x(i), 1), Math.max(y(min[i]) - y(top), 1));
      });
      if (samples) this.drawSamples(ctx, u, samples, ratio);
      for (const values of [low, high]) this.drawSteps(ctx, values, x, y, {color: "std", width: ratio, dash: x(1) - x(0) > 6 * ratio ? [4 * ratio, 3 * ratio] : []});
      this.drawSteps(ctx, mean, x, y, {color: "mean", width: 1.5 * ratio, dash: []});
    });
    this.drawCoverage(u, ratio);
  }

  // A bucket without a value ends the line; the next one begins a new piece.
  drawSteps(ctx, values, x, y, {color: name, width, dash}) {
    ctx.beginPath();
    values.forEach((value, i) => {
      if (value === null) return;
      const joined = i > 0 && values[i - 1] !== null;
      ctx[joined ? "lineTo" : "moveTo"](x(i), y(value));
      ctx.lineTo(Math.max(x(i + 1), x(i) + 1), y(value));
    });
    ctx.strokeStyle = color(name);
    ctx.lineWidth = width;
    ctx.setLineDash(dash);
    ctx.stroke();
  }

  drawSamples(ctx, u, {timestamps, values}, ratio) {
    ctx.fillStyle = color("samples");
    const size = (u.bbox.width / ratio / timestamps.length > 2 ? 4 : 2.5) * ratio;
    timestamps.forEach((timestamp, i) => {
      if (values[i] === null) return;
      ctx.fillRect(u.valToPos(timestamp, "x", true) - size / 2, u.valToPos(values[i], "y", true) - size / 2, size, size);
    });
  }

  // Above the curves, a cell an hour or a day: as high as the part of its windows that Alvo holds.
  drawCoverage(u, ratio) {
    const {ctx, bbox} = u;
    const bottom = bbox.top - 4 * ratio;
    for (const {start, end, part} of this.shown.coverage) {
      if (part === null) continue;
      const left = Math.round(u.valToPos(start / 1e3, "x", true)), right = Math.round(u.valToPos(end / 1e3, "x", true));
      const width = Math.max(right - left - (right - left > 3 * ratio ? ratio : 0), 1);
      const height = Math.round(part === 0 ? 2 * ratio : (part === 1 ? STRIP : 1 + part * (STRIP - 2)) * ratio);
      ctx.fillStyle = color(part === 1 ? "full" : part === 0 ? "none" : "part");
      ctx.fillRect(left, bottom - height, width, height);
    }
  }
}

// The windows that are found of those that the period has, in cells; a cell that is still to come is null.
export function coverage({start, end, from, bucket, statistics: {windows}}, now) {
  const fine = end - start <= 14 * DAY && bucket <= HOUR;
  const length = fine ? HOUR : Math.max(DAY, bucket);
  const window = 600e3;
  const cells = [];
  for (let first = 0; first < windows.length; first += length / bucket) {
    const begin = from + first * bucket;
    const expected = Math.floor((Math.min(begin + length, end, now) - begin) / window);
    const found = windows.slice(first, first + length / bucket).reduce((sum, count) => sum + count, 0);
    const part = expected <= 0 && !found ? null : Math.min(1, found / Math.max(expected, found));
    cells.push({start: begin, end: Math.min(begin + length, end), part, found, expected: Math.max(expected, found)});
  }
  return {length, cells};
}

export class Curve {
  constructor(root, labels) {
    this.labels = labels;
    this.chart = new uPlot({
      width: root.clientWidth,
      height: root.clientHeight,
      padding: [8, 12, 0, 0],
      legend: {show: false},
      cursor: {show: false},
      scales: {x: {time: false, range: padded}, y: {range: padded}},
      axes: [axis({size: 34, label: () => this.labels.x, labelSize: 20}), valueAxis(() => this.labels.y)],
      series: [{}, undrawn("power")],
      hooks: {draw: [(u) => this.draw(u)]},
    }, [[], []], root);
    this.windows = [];
    sized(root, this.chart);
  }

  show({wind_speed: x, power: y, windows}, labels) {
    this.labels = labels;
    this.windows = windows;
    this.chart.setData([x, y]);
  }

  draw(u) {
    const [xs, ys] = u.data;
    within(u, (ctx) => {
      ctx.fillStyle = color("mean");
      ctx.globalAlpha = 0.6;
      this.windows.forEach((count, i) => {
        const radius = Math.min(2 + Math.log2(count) / 2, 5.5) * uPlot.pxRatio;
        ctx.beginPath();
        ctx.arc(u.valToPos(xs[i], "x", true), u.valToPos(ys[i], "y", true), radius, 0, 2 * Math.PI);
        ctx.fill();
      });
    });
  }
}
