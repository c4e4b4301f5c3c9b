// Periods as the browser or UTC has them. Moments are milliseconds since 1970 in UTC; zone is "utc" or "local".

export const MINUTE = 60e3, HOUR = 3600e3, DAY = 86400e3;
export const localZone = Intl.DateTimeFormat().resolvedOptions().timeZone;

// Midnight of the day of a moment, or of so many days later; a local day may have 23 or 25 hours.
export function midnight(moment, zone, days = 0) {
  const date = new Date(moment);
  return zone === "utc"
    ? Date.UTC(date.getUTCFullYear(), date.getUTCMonth(), date.getUTCDate() + days)
    : new Date(date.getFullYear(), date.getMonth(), date.getDate() + days).getTime();
}

export function day(moment, zone) {
  return {start: midnight(moment, zone), end: midnight(moment, zone, 1)};
}

// From Monday, as ISO 8601 has it.
export function week(moment, zone) {
  const date = new Date(moment);
  const sinceMonday = ((zone === "utc" ? date.getUTCDay() : date.getDay()) + 6) % 7;
  return {start: midnight(moment, zone, -sinceMonday), end: midnight(moment, zone, 7 - sinceMonday)};
}

// Which button gives this period, if any does.
export function lengthOf({start, end}, zone, all) {
  const is = (other) => other.start === start && other.end === end;
  if (is(day(start, zone))) return "day";
  if (is(week(start, zone))) return "week";
  return all && is(all) ? "all" : null;
}

export function moved(period, zone, all, direction) {
  const length = lengthOf(period, zone, all);
  const days = {day: 1, week: 7}[length];
  if (days) {
    const bounds = [period.start, period.end].map((bound) => midnight(bound, zone, direction * days));
    return {start: bounds[0], end: bounds[1]};
  }
  const span = period.end - period.start;
  return {start: period.start + direction * span, end: period.end + direction * span};
}

// A moment in ISO 8601, in the zone and without it: "2024-05-20 13:40".
export function written(moment, zone) {
  const offset = zone === "utc" ? 0 : new Date(moment).getTimezoneOffset() * MINUTE;
  return new Date(moment - offset).toISOString().slice(0, 16).replace("T", " ");
}

export function describe({start, end}, zone) {
  const name = zone === "utc" ? "UTC" : localZone;
  const whole = [start, end].every((bound) => midnight(bound, zone) === bound);
  const [first, last] = whole
    ? [start, midnight(end, zone, -1)].map((bound) => written(bound, zone).slice(0, 10))
    : [start, end].map((bound) => written(bound, zone));
  if (first === last) return `${first} ${name}`;
  return `${first} to ${!whole && first.slice(0, 10) === last.slice(0, 10) ? last.slice(11) : last} ${name}`;
}

// A length of time in the largest unit of which it has a whole number: "6 h".
export function duration(milliseconds) {
  const [size, name] = [[DAY, "d"], [HOUR, "h"], [MINUTE, "min"]].find(([unit]) => milliseconds % unit === 0);
  return `${milliseconds / size} ${name}`;
}

export function age(milliseconds) {
  const [size, name] = [[2 * DAY, "day"], [2 * HOUR, "hour"], [0, "minute"]].find(([least]) => milliseconds >= least);
  const count = Math.floor(milliseconds / {day: DAY, hour: HOUR, minute: MINUTE}[name]);
  return `${count.toLocaleString("en")} ${name}${count === 1 ? "" : "s"}`;
}
