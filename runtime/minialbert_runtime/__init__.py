"""Texts to labels and entities with a model that `minialbert export` wrote: ONNX Runtime, no torch.

Importing the package imports neither numpy nor ONNX Runtime; the first use of `Model` does.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from .errors import UserError as RuntimeUserError

if TYPE_CHECKING:
    from .model import Model

__version__ = "0.2.0"

# ONNX Runtime reads this when it is imported, which no module of this package or the library does before this one.
# Without it, it would keep a device id in the user's home and ask for a host of Microsoft's to send events to.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__all__ = ["Model", "RuntimeUserError", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "Model":
        from .model import Model

        return Model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
