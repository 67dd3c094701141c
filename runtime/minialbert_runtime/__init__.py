"""Texts to labels and entities with a model that `minialbert export` wrote: ONNX Runtime, no torch.

Importing the package imports neither numpy nor ONNX Runtime; the first use of `Model` does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .errors import UserError as RuntimeUserError

if TYPE_CHECKING:
    from .model import Model

__version__ = "0.1.0"

__all__ = ["Model", "RuntimeUserError", "__version__"]


def __getattr__(name: str) -> Any:  # noqa: ANN401
    if name == "Model":
        from .model import Model

        return Model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
