"""MiniALBERT: full-size encoders distilled into small recursive ones.

Importing the package registers the model with Transformers' Auto classes.
"""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from .configuration_minialbert import MiniAlbertConfig
from .modeling_minialbert import (
    MiniAlbertForMaskedLM,
    MiniAlbertForQuestionAnswering,
    MiniAlbertForSequenceClassification,
    MiniAlbertForTokenClassification,
    MiniAlbertModel,
)

__version__ = "0.1.0"

AutoConfig.register("minialbert", MiniAlbertConfig, exist_ok=True)
AutoModel.register(MiniAlbertConfig, MiniAlbertModel, exist_ok=True)
AutoModelForMaskedLM.register(MiniAlbertConfig, MiniAlbertForMaskedLM, exist_ok=True)
AutoModelForSequenceClassification.register(
    MiniAlbertConfig, MiniAlbertForSequenceClassification, exist_ok=True
)
AutoModelForTokenClassification.register(MiniAlbertConfig, MiniAlbertForTokenClassification, exist_ok=True)
AutoModelForQuestionAnswering.register(MiniAlbertConfig, MiniAlbertForQuestionAnswering, exist_ok=True)

__all__ = [
    "MiniAlbertConfig",
    "MiniAlbertForMaskedLM",
    "MiniAlbertForQuestionAnswering",
    "MiniAlbertForSequenceClassification",
    "MiniAlbertForTokenClassification",
    "MiniAlbertModel",
    "__version__",
]
