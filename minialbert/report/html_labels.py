"""Labels beside the points of a chart, placed one after another where they cover nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

LONGEST = 30
_LETTER = 6.6  # width of an average letter, a little generous, in the unit of the drawing
_HEIGHT = 14.0
_GAP = 4.0
_NEAR = ((9, 4, "start"), (-9, 4, "end"), (0, -9, "middle"), (0, 18, "middle"))
_CORNERS = ((7, -7, "start"), (-7, -7, "end"), (7, 15, "start"), (-7, 15, "end"))
# Farther away, a thin line leads to the point.
_FAR = tuple(
    (side * across, down, "start" if side > 0 else "end")
    for down in (-24, 30, -40, 46, -58, 64)
    for across in (16, 34)
    for side in (1, -1)
)


@dataclass(frozen=True)
class Box:
    """A rectangle, y growing downwards.

    Attributes:
        left: its left side.
        top: its upper side.
        right: its right side.
        bottom: its lower side.
    """

    left: float
    top: float
    right: float
    bottom: float

    def shared(self, other: Box) -> float:
        """Return the area that both cover.

        Args:
            other: another rectangle.

        Returns:
            The area.
        """
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(0.0, width) * max(0.0, height)

    @property
    def area(self) -> float:
        """Its area."""
        return (self.right - self.left) * (self.bottom - self.top)


@dataclass(frozen=True)
class Label:
    """A label and its place.

    Attributes:
        text: what it says, shortened where it is long.
        x: of its anchor.
        y: of its base line.
        anchor: "start", "middle" or "end", as in SVG.
        lead: where a line from the point to a far label ends.
    """

    text: str
    x: float
    y: float
    anchor: str
    lead: tuple[float, float] | None = None

    def box(self) -> Box:
        """Return about what it covers."""
        width = len(self.text) * _LETTER
        left = self.x - {"start": 0.0, "middle": width / 2, "end": width}[self.anchor]
        return Box(left, self.y - 0.78 * _HEIGHT, left + width, self.y + 0.22 * _HEIGHT)


def place_labels(
    texts: Sequence[str],
    spots: Sequence[tuple[float, float]],
    taken: Sequence[Box],
    bounds: Box,
    *,
    anywhere: bool = False,
) -> list[Label]:
    """Put a label beside each point.

    Args:
        texts: what they say.
        spots: the points.
        taken: what should not be covered either.
        bounds: where labels may be.
        anywhere: look for free places much farther away too, which suits short labels.

    Returns:
        The labels, in the order of the points. Where there is no free place, the one that covers least.
    """
    covered = [*taken, *(Box(x - 5, y - 5, x + 5, y + 5) for x, y in spots)]
    found: dict[int, Label] = {}
    # From the edges inwards: a point between others has fewer places, but those outside keep clear of it.
    for index in sorted(range(len(spots)), key=lambda at: (-spots[at][0], spots[at][1])):
        text = _short(texts[index])
        label = _best(text, spots[index], covered, bounds)
        if anywhere and not _free(label.box(), covered, bounds):
            found_far = (far for far in _around(text, spots[index]) if _free(far.box(), covered, bounds))
            label = next(found_far, label)
        box = label.box()
        # Side by side, "16" and "2" would read "162".
        covered.append(Box(box.left - _GAP, box.top, box.right + _GAP, box.bottom))
        found[index] = label
    return [found[index] for index in range(len(spots))]


def crowded(labels: Sequence[Label], spots: Sequence[tuple[float, float]]) -> bool:
    """Tell whether labels cover each other, or points.

    Args:
        labels: the labels.
        spots: the points.

    Returns:
        Whether they do.
    """
    boxes = [label.box() for label in labels]
    marks = [Box(x - 3, y - 3, x + 3, y + 3) for x, y in spots]
    return any(one.shared(other) > 0 for at, one in enumerate(boxes) for other in (*boxes[:at], *marks))


def _free(box: Box, covered: Sequence[Box], bounds: Box) -> bool:
    inside = box.area - box.shared(bounds) < 1e-6
    return inside and not any(box.shared(other) for other in covered)


def _around(text: str, spot: tuple[float, float]) -> Iterator[Label]:
    """Yield labels in rings around a point, the nearest first, each with a line to its middle."""
    for radius in range(24, 244, 8):
        count = max(12, round(math.tau * radius / 14))
        for place in range(count):
            turn = math.tau * place / count
            x, y = spot[0] + radius * math.cos(turn), spot[1] - radius * math.sin(turn)
            yield Label(text, x, y + 0.28 * _HEIGHT, "middle", (x, y))


def _best(text: str, spot: tuple[float, float], covered: Sequence[Box], bounds: Box) -> Label:
    candidates = [
        Label(text, spot[0] + across, spot[1] + down, anchor) for across, down, anchor in _NEAR + _CORNERS
    ]
    candidates += [
        Label(
            text, spot[0] + across, spot[1] + down, anchor, (spot[0] + across, spot[1] + down - 0.3 * _HEIGHT)
        )
        for across, down, anchor in _FAR
    ]

    def cost(label: Label) -> float:
        box = label.box()
        outside = box.area - box.shared(bounds)
        return 10 * outside + sum(box.shared(other) for other in covered)

    # min() keeps the first of equals, and the nearest come first.
    return min(candidates, key=cost)


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST - 1].rstrip() + "…"
