// Numbers as people read them. Units are those of Tunesmith's terminal: GB are 10^9 bytes.

const integers = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0 });

export function integer(value: number): string {
  return integers.format(value);
}

/** Four significant digits; what is not a number says so. */
export function decimal(value: number | null | undefined, digits = 4): string {
  if (value === null || value === undefined || Number.isNaN(value)) return "not a number";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  if (value !== 0 && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e6)) {
    return minus(value.toExponential(Math.max(0, digits - 2)).replace(/\.?0*e/, "e"));
  }
  return minus(String(Number(value.toPrecision(digits))));
}

export function bytes(value: number): string {
  for (const [unit, size] of [
    ["TB", 1e12],
    ["GB", 1e9],
    ["MB", 1e6],
    ["kB", 1e3],
  ] as const) {
    if (value >= size) return `${trimmed(value / size)} ${unit}`;
  }
  return `${value} bytes`;
}

function trimmed(value: number): string {
  return value >= 100 ? value.toFixed(0) : value.toFixed(1);
}

export function duration(seconds: number): string {
  const whole = Math.round(seconds);
  if (seconds < 10) return `${Number(seconds.toFixed(1))} s`;
  if (whole < 60) return `${whole} s`;
  const [days, hours, minutes] = [
    Math.floor(whole / 86400),
    Math.floor(whole / 3600) % 24,
    Math.floor(whole / 60) % 60,
  ];
  if (days) return `${days} d ${hours} h`;
  if (hours) return `${hours} h ${minutes} min`;
  return minutes < 10 && whole % 60 ? `${minutes} min ${whole % 60} s` : `${minutes} min`;
}

export function percent(share: number): string {
  return `${Math.round(100 * share)} %`;
}

export function energy(kwh: number): string {
  return kwh < 0.1 ? `${decimal(1000 * kwh, 3)} Wh` : `${decimal(kwh, 3)} kWh`;
}

/** Unix seconds as a time of day, with the date if that is another day. */
export function moment(unixSeconds: number): string {
  const date = new Date(1000 * unixSeconds);
  const time = date.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
  if (date.toDateString() === new Date().toDateString()) return time;
  return `${date.toLocaleDateString([], { day: "numeric", month: "short" })}, ${time}`;
}

export function plural(count: number, noun: string): string {
  return `${integer(count)} ${noun}${count === 1 ? "" : "s"}`;
}

function minus(text: string): string {
  return text.replace(/^-/, "−").replace("e-", "e−").replace("e+", "e");
}
