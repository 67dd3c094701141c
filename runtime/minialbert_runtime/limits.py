"""What a caller may choose, and what a client can ask of the service: options of `minialbert-runtime`."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from .errors import UserError

# What runs a graph; here, where no library is imported. Exports are compared with their model in the first two; the
# third runs the graphs of the first.
PROVED_ENGINES = ("onnx", "openvino")
ENGINES = (*PROVED_ENGINES, "native")


def _limit(value: float, meaning: str) -> Any:
    return field(default=value, metadata={"help": meaning})


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of a service, each over 0; what each means stands beside it."""

    max_bytes: int = _limit(1_000_000, "most bytes of a request's body (413)")
    max_texts: int = _limit(1000, "most texts of a request (422)")
    max_characters: int = _limit(100_000, "most characters of a text (422)")
    seconds: float = _limit(30.0, "most seconds until an answer, waiting included (503)")
    runs: int = _limit(1, "requests that run at the same time")
    queue: int = _limit(100, "most requests that wait (429)")
    connections: int = _limit(500, "most open connections (503)")
    client_seconds: float = _limit(
        10.0, "seconds in which a client sends its headers, then its body, then takes its answer (408)"
    )

    def __post_init__(self) -> None:
        for one in fields(self):
            if not getattr(self, one.name) > 0:
                option = one.name.replace("_", "-")
                raise UserError(f"expected --{option} over 0, found {getattr(self, one.name)}")
