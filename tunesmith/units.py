"""Formats numbers for messages and reports: bytes, counts, shares and times."""

import math
from datetime import datetime

NO_VALUE = "–"
JOULES_PER_KWH = 3.6e6


def size(bytes_: float) -> str:
    """Formats bytes in the largest decimal unit that leaves at least 1, such as 12.3 GB."""
    unit, divisor = next((pair for pair in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)) if bytes_ >= pair[1]), ("bytes", 1))
    value = bytes_ / divisor
    return f"{value:,.1f} {unit}" if unit != "bytes" else f"{value:.0f} {unit}"


def clock(seconds: float) -> str:
    """Formats seconds as h:mm:ss, or m:ss under an hour."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def decimals(*values: float) -> int:
    """Returns how many decimals show two significant figures of the largest value, between 2 and 4."""
    largest = max((abs(v) for v in values if math.isfinite(v)), default=1)
    return min(4, max(2, 1 - math.floor(math.log10(largest)))) if largest else 2


def number(value: float | None, digits: int | None = None) -> str:
    if value is None or not math.isfinite(value):
        return NO_VALUE if value is None else "not finite"
    return f"{value:,.{decimals(value) if digits is None else digits}f}".replace("-", "−")


def signed(value: float, digits: int) -> str:
    return ("+" if value > 0 else "") + number(value, digits)


def percent(share: float | None) -> str:
    """Formats a share as whole per cent, with a decimal where rounding would make 0 or 100 of a share that is
    neither."""
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


def moment(seconds: float) -> str:
    """Formats Unix seconds as a time of day here, with the date if that is not today."""
    when = datetime.fromtimestamp(seconds)
    return when.strftime("%H:%M" if when.date() == datetime.now().date() else "%Y-%m-%d %H:%M")


def energy(joules: float) -> str:
    """Formats joules as kWh, as Wh below 0.1 kWh, and as J below 0.1 Wh."""
    kwh = joules / JOULES_PER_KWH
    if kwh >= 0.1:
        return f"{kwh:,.2f} kWh"
    return f"{kwh * 1000:.1f} Wh" if kwh >= 1e-4 else f"{joules:.1f} J"


def count(number: float) -> str:
    """Formats a count in thousands, millions or billions, such as 12.3M."""
    for unit, units in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= units:
            return f"{number / units:.1f}{unit}"
    return f"{number:,.0f}"
