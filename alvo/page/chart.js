// The charts: a panel per variable, and power against wind speed. Text beside each chart gives its values too.

import {DAY, HOUR, written} from "./period.js";

const {uPlot} = window;
const FONT = '12px system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", Arial, sans-serif';
const STRIP = 7; // height of the coverage strip
const NEAR = 30; // how far from a point of the power curve the pointer may be, in pixels
// Over longer steps minimum and maximum enclose nearly everything: they are lines, and the band is mean ± std.
export const LONG = HOUR;

const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const DIGITS = {maximumSignificantDigits: 4, maximumFractionDigits: 1, roundingPriority: "morePrecision"};
const UNITS = {degC: "°C"};
export const unitOf = (unit) => UNITS[unit] ?? unit ?? "";

export function number(value) {
  if (value === null || value === undefined) return "none";
  const large = Math.abs(value) >= 1e6 || (value !== 0 && Math.abs(value) < 1e-4);
  return large ? value.toExponential(3) : value.toLocaleString("en", DIGITS);
}

// The time, with its date below where that changes; the date alone on an axis of days.
function timeLabels({zone, end}, ticks, increment) {
  let above = null;
  return ticks.map((tick) => {
    const [date, time] = written(tick * 1e3, zone).split(" ");
    if (increment * 1e3 >= DAY) return date;
    const label = date === above || tick * 1e3 >= end ? time : `${time}\n${date}`;
    above = date;
    return label;
  });
}

// A date is wider than a time.
const tickSpace = (u, index, first, last) => ((last - first) * 1e3 > 14 * DAY ? 80 : 50);

const axis = (more) => ({
  stroke: () => color("muted"),
  font: FONT,
  labelFont: FONT,
  grid: {stroke: () => color("grid"), width: 1},
  ticks: {stroke: () => color("grid"), width: 1, size: 5},
  ...more,
});

const valueAxis = (label) => axis({
  scale: "y", size: 52, ...(label && {label, labelSize: 20}),
  values: (u, ticks, index, space, increment) => {
    const maximumFractionDigits = Math.min(Math.max(3, -Math.floor(Math.log10(increment))), 20);
    const plain = (tick) => tick.toLocaleString("en", {maximumFractionDigits});
    return ticks.map((tick) => (Math.abs(tick) < 1e6 ? plain(tick) : tick.toExponential(1)));
  },
});

const padded = (_, low, high) => (low === null ? [0, 1] : uPlot.rangeNum(low, high, 0.1, true));

// uPlot scales, and draws axes and cursor; the curves are drawn here, so that a step is as long as its bucket.
const undrawn = () => ({paths: () => null, points: {show: false}});

// The panels share the cursor, and nothing else: a selection is one panel's.
const SYNC = {key: "time", filters: {pub: (type) => type === "mousemove" || type === "mouseleave"}};

function sized(root, chart) {
  new ResizeObserver(() => {
    if (root.clientWidth) chart.setSize({width: root.clientWidth, height: root.clientHeight});
  }).observe(root);
}

// uPlot listens to a mouse alone. A tap moves it, so that it reads a value.
const MOUSE = {
  pointerdown: ["mousemove", "mousedown"],
  pointermove: ["mousemove"],
  pointerup: ["mouseup"],
  pointercancel: ["mouseup"],
};

function touched({over}) {
  for (const [type, events] of Object.entries(MOUSE)) {
    over.addEventListener(type, ({pointerType, clientX, clientY}) => {
      if (pointerType === "mouse") return;
      const init = {bubbles: true, clientX, clientY, movementX: 1};
      for (const mouse of events) over.dispatchEvent(new MouseEvent(mouse, init));
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

// A panel of one variable. `shown` is what is drawn:
// {zone, start, end, bucket, from, statistics, coverage, samples, std}.
export class Panel {
  constructor(root, shown, onZoom, onPoint) {
    this.shown = shown;
    this.chart = new uPlot({
      width: root.clientWidth,
      height: root.clientHeight,
      padding: [STRIP + 8, 36, 0, 0], // room for half a date
      legend: {show: false},
      tzDate: (seconds) => {
        const date = new Date(seconds * 1e3);
        return this.shown.zone === "utc" ? uPlot.tzDate(date, "Etc/UTC") : date;
      },
      cursor: {y: false, points: {show: false}, sync: SYNC, drag: {x: true, y: false, setScale: false}},
      scales: {
        x: {time: true, range: () => [this.shown.start / 1e3, this.shown.end / 1e3]},
        y: {range: (u, low, high) => padded(u, ...this.extremes(low, high))},
      },
      axes: [
        axis({
          size: (u, labels) => (labels?.some((label) => label.includes("\n")) ? 42 : 28), space: tickSpace,
          values: (u, ticks, index, space, increment) => timeLabels(this.shown, ticks, increment),
        }),
        valueAxis(),
      ],
      series: [{}, ...this.columns().slice(1).map(undrawn)],
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

  // Samples may lie beyond the statistics: those may lack minimum and maximum, or be older.
  extremes(...bounds) {
    const drawn = [...bounds, ...(this.shown.samples?.values ?? [])].filter((value) => value !== null);
    return drawn.length ? [drawn.reduce((a, b) => Math.min(a, b)), drawn.reduce((a, b) => Math.max(a, b))] : bounds;
  }

  columns() {
    const {from, bucket, statistics: {windows, mean, min, max, std}, std: wanted} = this.shown;
    const empty = windows.map(() => null);
    const off = (sign) => mean.map((value, i) => (value === null || std[i] === null ? null : value + sign * std[i]));
    let spread = (wanted || bucket > LONG) && mean && std ? [off(-1), off(1)] : [empty, empty];
    // No value is beyond the extremes, and so is no band.
    if (bucket > LONG && min && max) {
      spread = spread.map((values) => values.map((value, i) => (
        value === null ? null : Math.min(Math.max(value, min[i] ?? value), max[i] ?? value)
      )));
    }
    return [
      windows.map((_, i) => (from + (i + 0.5) * bucket) / 1e3), mean ?? empty, min ?? empty, max ?? empty, ...spread,
    ];
  }

  draw(u) {
    const {from, bucket, samples} = this.shown;
    const [, mean, min, max, low, high] = u.data;
    const x = (i) => Math.round(u.valToPos((from + i * bucket) / 1e3, "x", true));
    const y = (value) => u.valToPos(value, "y", true);
    const ratio = uPlot.pxRatio;
    within(u, (ctx) => {
      this.drawBand(ctx, ...(bucket > LONG ? [low, high] : [min, max]), x, y);
      if (samples) this.drawSamples(ctx, u, samples, ratio);
      const [lines, name] = bucket > LONG ? [[min, max], "edge"] : [[low, high], "std"];
      for (const values of lines) this.drawSteps(ctx, values, x, y, name, (name === "std" ? 1.5 : 1) * ratio);
      this.drawSteps(ctx, mean, x, y, "mean", 1.5 * ratio);
    });
    this.drawCoverage(u, ratio);
  }

  drawBand(ctx, low, high, x, y) {
    ctx.fillStyle = color("band");
    high.forEach((top, i) => {
      if (top === null || low[i] === null) return;
      ctx.fillRect(x(i), y(top), Math.max(x(i + 1) - x(i), 1), Math.max(y(low[i]) - y(top), 1));
    });
  }

  // A bucket without a value ends the line; the next one begins a new piece. Those of std are dashes.
  drawSteps(ctx, values, x, y, name, width) {
    const joined = name !== "std";
    ctx.beginPath();
    values.forEach((value, i) => {
      if (value === null) return;
      ctx[joined && i > 0 && values[i - 1] !== null ? "lineTo" : "moveTo"](x(i), y(value));
      ctx.lineTo(Math.max(x(i + 1), x(i) + 1), y(value));
    });
    ctx.strokeStyle = color(name);
    ctx.lineWidth = width;
    ctx.stroke();
  }

  drawSamples(ctx, u, {timestamps, values}, ratio) {
    ctx.fillStyle = color("samples");
    const size = (u.bbox.width / ratio / timestamps.length > 2 ? 4 : 2.5) * ratio;
    timestamps.forEach((timestamp, i) => {
      if (values[i] === null) return;
      const x = u.valToPos(timestamp, "x", true), y = u.valToPos(values[i], "y", true);
      ctx.fillRect(x - size / 2, y - size / 2, size, size);
    });
  }

  // Above the curves, a cell an hour or a day: as high as the part of its windows that Alvo holds.
  drawCoverage(u, ratio) {
    const {ctx, bbox} = u;
    const bottom = bbox.top - 4 * ratio;
    for (const {start, end, part} of this.shown.coverage) {
      if (part === null) continue;
      const [left, right] = [start, end].map((bound) => Math.round(u.valToPos(bound / 1e3, "x", true)));
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
    // The period's first window; in zones such as Asia/Kathmandu a period begins within one.
    const within = Math.max(begin, Math.ceil(start / window) * window);
    const ended = Math.floor((now - within) / window);
    const expected = Math.min(Math.ceil((Math.min(begin + length, end) - within) / window), ended);
    const found = windows.slice(first, first + length / bucket).reduce((sum, count) => sum + count, 0);
    const part = expected <= 0 && !found ? null : Math.min(1, found / Math.max(expected, found));
    cells.push({start: begin, end: Math.min(begin + length, end), part, found, expected: Math.max(expected, found)});
  }
  return {length, cells};
}

// Power against wind speed: a point for the windows of a cell.
export class Curve {
  constructor(root, points, labels, onPoint) {
    this.labels = labels;
    this.windows = points.windows;
    this.chart = new uPlot({
      width: root.clientWidth,
      height: root.clientHeight,
      padding: [8, 12, 0, 0],
      legend: {show: false},
      cursor: {
        x: false, y: false, drag: {x: false, y: false},
        points: {size: 13, width: 2, fill: "transparent", stroke: () => color("samples")},
        dataIdx: (u, series) => (series ? this.nearest() : null),
      },
      scales: {x: {time: false, range: padded}, y: {range: padded}},
      axes: [axis({size: 34, label: () => this.labels.x, labelSize: 20}), valueAxis(() => this.labels.y)],
      series: [{}, undrawn()],
      hooks: {
        draw: [(u) => this.draw(u)],
        setCursor: [(u) => onPoint(u.cursor.idxs?.[1] ?? null)],
      },
    }, [points.wind_speed, points.power], root);
    sized(root, this.chart);
    touched(this.chart);
  }

  show({wind_speed: x, power: y, windows}, labels) {
    this.labels = labels;
    this.windows = windows;
    this.chart.setData([x, y]);
  }

  at(index) {
    const {data: [x, y]} = this.chart;
    return {left: this.chart.valToPos(x[index], "x"), top: this.chart.valToPos(y[index], "y")};
  }

  // The point under the cursor, null where none is near.
  nearest() {
    const {cursor} = this.chart;
    if (cursor.left < 0) return null;
    let [nearest, least] = [null, NEAR];
    for (const index of this.windows.keys()) {
      const {left, top} = this.at(index);
      const distance = Math.hypot(left - cursor.left, top - cursor.top);
      if (distance < least) [nearest, least] = [index, distance];
    }
    return nearest;
  }

  // Moves the cursor to the next point in the order of the wind.
  step(direction) {
    const last = this.windows.length - 1, current = this.chart.cursor.idxs?.[1] ?? null;
    const index = current === null ? (direction < 0 ? last : 0) : Math.min(Math.max(current + direction, 0), last);
    this.chart.setCursor(this.at(index));
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
