"""Axes of a chart: ticks at round numbers, and where a value lies on the page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

# Beyond this, the width of an axis or its margins would overflow.
LARGEST = 1e100


def nice_ticks(low: float, high: float, target: int = 5, *, least: float = 0.0) -> list[float]:
    """Return round numbers between two values, a step of 1, 2 or 5 times a power of ten apart.

    Args:
        low: the lowest value.
        high: the highest value, above `low`.
        target: about how many steps.
        least: the smallest step; 1 for whole numbers only.

    Returns:
        The numbers in [low, high], rising.
    """
    step = max(_step(low, high, target), least)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [_exact(count, step) for count in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Return ticks of a logarithmic axis: powers of ten, with 2 and 5 times them where the axis is short.

    Args:
        low: the lowest value, above zero.
        high: the highest value, above `low`.

    Returns:
        The numbers in [low, high], rising; round numbers as on a linear axis where it spans hardly a power of ten.
    """
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    inside = [10.0**power for power in powers if low * (1 - 1e-9) <= 10.0**power <= high * (1 + 1e-9)]
    fine = [float(f"{factor}e{power}") for power in powers for factor in (1, 2, 5)]
    fine = [tick for tick in fine if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9)]
    if len(fine) < 3:
        return [tick for tick in nice_ticks(low, high) if tick > 0]
    if len(fine) <= 8:
        return fine
    return inside[:: math.ceil(len(inside) / 8)]


@dataclass(frozen=True)
class Axis:
    """A range of values along a range of the page.

    Attributes:
        low: the value at its start.
        high: the value at its end.
        start: where it starts.
        end: where it ends.
        log: whether equal ratios are equally far apart.
        ticks: values to mark.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool
    ticks: tuple[float, ...]

    def place(self, value: float) -> float:
        """Return where a value lies.

        Args:
            value: the value.

        Returns:
            The coordinate.
        """
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def labels(self) -> list[str]:
        """Return the ticks as they are written, in one unit."""
        if self.log:
            return [_short(tick, tick) for tick in self.ticks]
        most = max((abs(tick) for tick in self.ticks), default=0)
        return [_short(tick, most) for tick in self.ticks]


def axis(
    values: Sequence[float],
    start: float,
    end: float,
    *,
    log: bool = False,
    whole: bool = False,
    counts: bool = False,
    margin: float = 0.0,
    most: float = math.inf,
) -> Axis:
    """Make an axis that holds some values.

    Args:
        values: what it must hold, at least one; above zero where `log` is set.
        start: where it starts on the page.
        end: where it ends.
        log: make it logarithmic.
        whole: begin and end it at a tick.
        counts: mark whole numbers only; no effect where `log` is set.
        margin: share of its range to leave free at both ends.
        most: where it ends at the latest, unless a value lies above; no effect where `log` or `whole` is set.

    Returns:
        The axis.
    """
    low, high = min(values), max(values)
    most = max(most, high)
    if log:
        if high / low < 1.001:
            low, high = low / 1.5, high * 1.5
        room = (high / low) ** margin
        low, high = low / room, high * room
        return Axis(low, high, start, end, log, tuple(log_ticks(low, high)))
    if high - low <= max(1 / LARGEST, 1e-9 * max(abs(low), abs(high))):
        room = abs(high) / 2 or 1.0
        low, high = low - room, high + room
    room = (high - low) * margin
    low, high = low - (min(room, low) if low >= 0 else room), high + room  # no sizes or scores below zero
    if low < most < high and not whole:
        high = most
    least = 1.0 if counts else 0.0
    if whole:
        step = max(_step(low, high, 5), least)
        low = _exact(math.floor(low / step + 1e-9), step)
        high = _exact(math.ceil(high / step - 1e-9), step)
    return Axis(low, high, start, end, log, tuple(nice_ticks(low, high, least=least)))


def usable(value: float, *, log: bool = False) -> bool:
    """Tell whether a value has a place on an axis: finite, and above zero on a logarithmic one.

    Args:
        value: the value.
        log: whether the axis is logarithmic.

    Returns:
        Whether it has.
    """
    return math.isfinite(value) and abs(value) < LARGEST and (not log or value > 1 / LARGEST)


def thinned(count: int, most: int) -> list[int]:
    """Choose positions evenly, the first and the last among them.

    Args:
        count: how many there are.
        most: how many to choose at most; at least 2.

    Returns:
        The positions, rising.
    """
    if count <= most:
        return list(range(count))
    return [round(place * (count - 1) / (most - 1)) for place in range(most)]


def figure(value: float) -> str:
    """Write a number of a chart for a reader.

    Args:
        value: the number.

    Returns:
        Four significant digits, and large numbers whole.
    """
    if value == int(value) and abs(value) < 1e15:
        return str(int(value))
    # From here on, four digits round up to five, which "g" would write as 1e+04.
    return f"{value:.0f}" if 9999.5 <= abs(value) < 1e15 else f"{value:.4g}"


def _step(low: float, high: float, target: int) -> float:
    raw = (high - low) / target
    power = math.floor(math.log10(raw))
    return next(step for factor in (1, 2, 5, 10) if (step := float(f"{factor}e{power}")) >= raw * (1 - 1e-9))


def _exact(count: int, step: float) -> float:
    # 3 * 0.1 is not 0.3: go back to the nearest number that the step can make.
    digits = max(0, 1 - math.floor(math.log10(step)))
    return round(count * step, digits) + 0.0  # never -0


def _short(tick: float, most: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if most >= size:
            return "0" if tick == 0 else f"{tick / (1e3 if letter == 'k' else size):g}{letter}"
    return f"{tick:g}"
