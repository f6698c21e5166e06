// Figures as people read them. `null` is shown as a dash, never as zero.

const DASH = "–";
const whole = new Intl.NumberFormat("en");
const compact = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });

const places = [];

/**
 * At least `decimals` decimal places, and more where it takes them to show `digits` significant digits: `189.42`, `750,000.50`, `0.000318`.
 * `stockstream.wording.figure` gives the same text.
 */
export const figure = (value, decimals = 2, digits = 6) => {
  if (value == null) return DASH;
  const most = Math.min(20, Math.max(decimals, digits - 1 - Number(value.toExponential(digits - 1).split("e")[1])));
  const key = 32 * most + decimals;
  places[key] ??= new Intl.NumberFormat("en", { minimumFractionDigits: decimals, maximumFractionDigits: most });
  return places[key].format(value);
};

export const count = (value) => (value == null ? DASH : whole.format(Math.round(value)));
export const short = (value) => (value == null ? DASH : value < 10_000 ? whole.format(Math.round(value)) : compact.format(value));
export const rate = (value) => (value == null ? DASH : value < 10 ? value.toFixed(1) : short(value));
export const ms = (value) => (value == null ? DASH : value < 10 ? value.toFixed(1) : whole.format(Math.round(value)));
export const price = (value) => figure(value);
export const size = (value) => (value == null || value < 10_000 ? figure(value, 0) : compact.format(value));
export const share = (value) => (value == null ? DASH : `${(100 * value).toFixed(0)} %`);
export const time = (seconds) => (seconds == null ? DASH : new Date(seconds * 1000).toISOString().slice(11, 19));
export const stamp = (seconds) => (seconds == null ? "" : new Date(seconds * 1000).toISOString().slice(0, 19).replace("T", " ") + " UTC");

/** A log return in percent, with its sign: `+0.12 %`. */
export const signed = (value, digits = 2) => {
  if (value == null) return DASH;
  const text = (100 * value).toFixed(digits);
  return `${value > 0 && !text.startsWith("-") ? "+" : ""}${text.replace("-", "\u2212")} %`;
};

export const direction = (value) => (value == null || value === 0 ? "" : value > 0 ? "up" : "down");

/** An age in its largest unit: `3 min`. */
export const ago = (seconds) => {
  for (const [unit, length] of [["days", 86_400], ["h", 3_600], ["min", 60]]) if (seconds >= 2 * length) return `${count(Math.floor(seconds / length))} ${unit}`;
  return `${count(seconds)} s`;
};
