// Figures as people read them. `null` is shown as a dash, never as zero.

const DASH = "–";
const whole = new Intl.NumberFormat("en");
const compact = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });

export const count = (value) => (value == null ? DASH : whole.format(Math.round(value)));
export const short = (value) => (value == null ? DASH : value < 10_000 ? whole.format(Math.round(value)) : compact.format(value));
export const rate = (value) => (value == null ? DASH : value < 10 ? value.toFixed(1) : short(value));
export const ms = (value) => (value == null ? DASH : value < 10 ? value.toFixed(1) : whole.format(Math.round(value)));
export const price = (value) => (value == null ? DASH : value.toFixed(Math.abs(value) < 1 ? 4 : 2));
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
