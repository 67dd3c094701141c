"""MiniALBERT: full-size encoders distilled into small recursive ones.

Importing the package registers the model with Transformers' Auto classes.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from minialbert.method.configuration_minialbert import MiniAlbertConfig
from minialbert.method.modeling_minialbert import (
    MiniAlbertForMaskedLM,
    MiniAlbertForQuestionAnswering,
    MiniAlbertForSequenceClassification,
    MiniAlbertForTokenClassification,
    MiniAlbertModel,
)

if TYPE_CHECKING:
    from minialbert.method.losses import layer_map
    from minialbert.method.objective import DistillationObjective
    from minialbert.method.trainer import DistillationTrainer

__version__ = "0.1.0"

# Loaded when first asked for: the trainer brings much that a model alone does not need.
_LAZY = {
    "DistillationObjective": ".method.objective",
    "DistillationTrainer": ".method.trainer",
    "layer_map": ".method.losses",
}

AutoConfig.register("minialbert", MiniAlbertConfig, exist_ok=True)
AutoModel.register(MiniAlbertConfig, MiniAlbertModel, exist_ok=True)
AutoModelForMaskedLM.register(MiniAlbertConfig, MiniAlbertForMaskedLM, exist_ok=True)
AutoModelForSequenceClassification.register(
    MiniAlbertConfig, MiniAlbertForSequenceClassification, exist_ok=True
)
AutoModelForTokenClassification.register(MiniAlbertConfig, MiniAlbertForTokenClassification, exist_ok=True)
AutoModelForQuestionAnswering.register(MiniAlbertConfig, MiniAlbertForQuestionAnswering, exist_ok=True)


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever the module has
    if name in _LAZY:
        return getattr(import_module(_LAZY[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "DistillationObjective",
    "DistillationTrainer",
    "MiniAlbertConfig",
    "MiniAlbertForMaskedLM",
    "MiniAlbertForQuestionAnswering",
    "MiniAlbertForSequenceClassification",
    "MiniAlbertForTokenClassification",
    "MiniAlbertModel",
    "__version__",
    "layer_map",
]
