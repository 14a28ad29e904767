"""Numbers for people: bytes, counts, shares and times, one way everywhere."""

import math

NO_VALUE = "–"


def size(bytes_: float) -> str:
    """Bytes in the decimal unit that suits them."""
    unit, divisor = next((pair for pair in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)) if bytes_ >= pair[1]), ("bytes", 1))
    value = bytes_ / divisor
    return f"{value:,.1f} {unit}" if unit != "bytes" else f"{value:.0f} {unit}"


def clock(seconds: float) -> str:
    """Hours, minutes and seconds."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def decimals(*values: float) -> int:
    """Digits after the point that show two figures of the largest value: 2 to 4."""
    largest = max((abs(v) for v in values if math.isfinite(v)), default=1)
    return min(4, max(2, 1 - math.floor(math.log10(largest)))) if largest else 2


def number(value: float | None, digits: int | None = None) -> str:
    if value is None or not math.isfinite(value):
        return NO_VALUE if value is None else "not finite"
    return f"{value:,.{decimals(value) if digits is None else digits}f}".replace("-", "−")


def signed(value: float, digits: int) -> str:
    return ("+" if value > 0 else "") + number(value, digits)


def percent(share: float | None) -> str:
    """Whole per cent, but never 0 or 100 for what is only close to it."""
    if share is None:
        return NO_VALUE
    edge = 0 < abs(share) < 0.01 or 0.99 < abs(share) < 1
    return f"{100 * share:.{1 if edge else 0}f}\xa0%".replace("-", "−")


def duration(seconds: float | None) -> str:
    if seconds is None:
        return NO_VALUE
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def count(number: float) -> str:
    """A count in thousands, millions or billions, such as 12.3M."""
    for unit, units in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= units:
            return f"{number / units:.1f}{unit}"
    return f"{number:,.0f}"
