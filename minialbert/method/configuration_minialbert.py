"""Configuration of one recursive student.

This file and `modeling_minialbert.py` import nothing else of the package, because both are copied
beside every saved checkpoint so that it also loads where `minialbert` is not installed.
"""

from __future__ import annotations

import json
import logging
import os
from functools import cache
from typing import Any

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

AUTO_MAP = {
    "AutoConfig": "configuration_minialbert.MiniAlbertConfig",
    "AutoModel": "modeling_minialbert.MiniAlbertModel",
    "AutoModelForMaskedLM": "modeling_minialbert.MiniAlbertForMaskedLM",
    "AutoModelForSequenceClassification": "modeling_minialbert.MiniAlbertForSequenceClassification",
    "AutoModelForTokenClassification": "modeling_minialbert.MiniAlbertForTokenClassification",
    "AutoModelForQuestionAnswering": "modeling_minialbert.MiniAlbertForQuestionAnswering",
}

# What the paper's release writes into an ALBERT config; an ordinary ALBERT has neither key.
_RELEASE_KEYS = ("use_adapter", "reduction_factor")

_SIZES = (
    "vocab_size", "embedding_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
    "intermediate_size", "max_position_embeddings", "type_vocab_size", "num_hidden_groups", "lora_rank",
)  # fmt: skip
_MOST_LABELS, _MOST_ITERATIONS = 1_000_000, 1_000
_warn_once = cache(logging.getLogger(__name__).warning)  # a configuration is built many times
_FRACTIONS = ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout")


def _is_number(value: object, kinds: Any = int | float) -> bool:
    """Return whether a value is a number of these kinds, as True and False are not."""
    return isinstance(value, kinds) and not isinstance(value, bool)


# Keys that came later, with what they were before: files that do not need them stay as they were.
LATER: dict[str, Any] = {
    "adapter_kind": "bottleneck", "num_hidden_groups": 1, "hidden_group_order": "runs",
    "groups_share_attention": False, "lora_rank": 8, "lora_layers": None,
}  # fmt: skip


# The linear layers of a block's attention, and of its feed-forward network.
ATTENTION_LAYERS, FFN_LAYERS = ("query", "key", "value", "dense"), ("ffn", "ffn_output")


# A key that a release config leaves out has ALBERT's default, not ours.
_ALBERT_DEFAULTS: dict[str, Any] = {
    "vocab_size": 30000, "embedding_size": 128, "hidden_size": 4096, "num_hidden_layers": 12,
    "num_attention_heads": 64, "intermediate_size": 16384, "hidden_act": "gelu_new", "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0, "max_position_embeddings": 512, "type_vocab_size": 2,
    "initializer_range": 0.02, "layer_norm_eps": 1e-12, "pad_token_id": 0,
}  # fmt: skip


@strict
class MiniAlbertConfig(PreTrainedConfig):
    """The shape of a MiniALBERT student: rank-r embeddings, a shared block (or several), adapters per iteration.

    The defaults are the paper's MiniALBERT-128. Every value is checked on construction.

    Examples:
        >>> config = minialbert.MiniAlbertConfig(num_hidden_layers=3, embedding_size=64)
        >>> config.hidden_size, config.adapter_reduction_factor
        (768, 16)

    Args:
        vocab_size: entries of the word table (V).
        embedding_size: rank of the embedding tables, the paper's r (Eq. 5); equal to `hidden_size` for
            full rank, which has no projection.
        hidden_size: width of the shared block, the paper's d.
        num_hidden_layers: iterations of the shared block the model is trained for, the paper's L.
        num_attention_heads: attention heads; must divide `hidden_size`.
        intermediate_size: inner width of the feed-forward network.
        hidden_act: activation of the feed-forward network. Adapters and the masked-LM head always use
            the exact GELU, as in the release.
        adapter_reduction_factor: `hidden_size` divided by the width of the adapters' bottleneck; None for
            a student without adapters of any kind.
        adapter_kind: what tells iterations apart, one kind or several joined by "+", as in "bottleneck+layer-norm":
            "bottleneck" (Eq. 3), "lora", "layer-norm" (scales and shifts of both LayerNorms, and biases),
            "scale" (of what attention and network add), "iteration-embedding" (a shift of the input), or a name
            given to `modeling_minialbert.register_adapter`.
        lora_rank: rank of "lora".
        lora_layers: the linear layers that "lora" changes: query, key, value and dense of the attention, ffn and
            ffn_output of the network; None for all.
        adapter_layer_norm: whether each adapter ends in a LayerNorm (the release has one; Eq. 3 has none).
        adapter_init: "identity" starts each adapter as the identity (zero up-projection; needs
            `adapter_layer_norm=False`), "as-published" with torch's default for Linear.
        hidden_dropout_prob: dropout after the embeddings and after attention.
        attention_probs_dropout_prob: dropout of attention probabilities.
        classifier_dropout: dropout before a task head.
        max_position_embeddings: longest input in tokens.
        type_vocab_size: number of token types.
        initializer_range: standard deviation of randomly initialised weights.
        layer_norm_eps: epsilon of the embeddings' and the block's LayerNorms.
        tie_word_embeddings: True for the factorised masked-LM decoder that shares the word table, False
            for the release's own decoder of `hidden_size` x `vocab_size`.
        pad_token_id: id of the padding token.
        elastic_depths: numbers of iterations before the last whose output the heads were trained to read too,
            ascending; None where nothing is known of that. Early exit leaves at these, or without them anywhere.
        exit_threshold: confidence, above 0 and up to 1, at which an input leaves a classifier before the last
            iteration; None to run all iterations.
        num_hidden_groups: blocks of their own weights, ALBERT's term; 1 for one block in all iterations.
        hidden_group_order: which group an iteration uses, of three: "runs" 1 1 2 2 3 3, "turns" 1 2 3 1 2 3, "ends"
            1 2 2 2 2 3 (the first and the last iteration have a group each, and the others share the rest, in runs).
        groups_share_attention: whether groups differ in their feed-forward networks alone.

    Raises:
        ValueError: if values contradict each other or are out of range.
    """

    model_type = "minialbert"
    keys_to_ignore_at_inference = ["exit_iterations"]  # no predictions, for Transformers' Trainer

    vocab_size: int = 30522
    embedding_size: int = 128
    hidden_size: int = 768
    num_hidden_layers: int = 6
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    adapter_reduction_factor: int | None = 16
    adapter_layer_norm: bool = True
    adapter_init: str = "as-published"
    hidden_dropout_prob: int | float = 0.1
    attention_probs_dropout_prob: int | float = 0.1
    classifier_dropout: int | float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    tie_word_embeddings: bool = True
    pad_token_id: int | None = 0
    elastic_depths: list[int] | tuple[int, ...] | None = None
    exit_threshold: int | float | None = None
    adapter_kind: str = "bottleneck"
    num_hidden_groups: int = 1
    hidden_group_order: str = "runs"
    groups_share_attention: bool = False
    lora_rank: int = 8
    lora_layers: list[str] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        """Fill in the base class's fields, then refuse a shape that cannot be built."""
        super().__post_init__(**kwargs)
        self._check_values()
        self._check_switches()
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size ({self.hidden_size}) must be a multiple of num_attention_heads "
                f"({self.num_attention_heads})"
            )
        if self.hidden_act not in ACT2FN:
            raise ValueError(f"hidden_act {self.hidden_act!r} is not one of Transformers' activations")
        if self.embedding_size > self.hidden_size:
            raise ValueError(
                f"embedding_size ({self.embedding_size}) is the rank of the embedding tables and cannot "
                f"exceed hidden_size ({self.hidden_size}); give {self.hidden_size} for full rank"
            )
        self._check_adapters()
        self._check_depths()
        self._check_groups()
        self._tell_idle()

    def _check_values(self) -> None:
        for name in _SIZES:
            value = getattr(self, name)
            if not _is_number(value, int):
                raise ValueError(f"{name} must be an integer, got {value!r}")
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not self.id2label:
            raise ValueError("id2label names no label: a task head needs at least one")
        if self.num_hidden_layers > _MOST_ITERATIONS:  # each would get its adapters
            raise ValueError(f"num_hidden_layers must be at most {_MOST_ITERATIONS}")
        for name in _FRACTIONS:
            value = getattr(self, name)
            if not _is_number(value) or not 0 <= value < 1:
                raise ValueError(f"{name} must be a fraction from 0 to below 1, got {value!r}")
        for name in ("initializer_range", "layer_norm_eps"):
            value = getattr(self, name)
            if not _is_number(value) or value <= 0:
                raise ValueError(f"{name} must be a number above 0, got {value!r}")

    def _check_switches(self) -> None:
        for name in ("adapter_layer_norm", "tie_word_embeddings", "groups_share_attention"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be true or false, got {getattr(self, name)!r}")
        padding = self.pad_token_id
        if padding is not None and (isinstance(padding, bool) or padding not in range(self.vocab_size)):
            raise ValueError(
                f"pad_token_id must lie in the vocabulary (0 to {self.vocab_size - 1}), got {padding!r}"
            )

    def _check_adapters(self) -> None:
        factor = self.adapter_reduction_factor
        if factor is not None and not _is_number(factor, int):
            raise ValueError(f"adapter_reduction_factor must be an integer or None, got {factor!r}")
        if factor is not None and not 1 <= factor <= self.hidden_size:
            raise ValueError(
                f"adapter_reduction_factor must lie between 1 and hidden_size ({self.hidden_size}), got "
                f"{factor}; None builds a student without adapters"
            )
        if self.adapter_init not in ("identity", "as-published"):
            raise ValueError(f"adapter_init must be 'identity' or 'as-published', got {self.adapter_init!r}")
        if factor is not None and self.adapter_init == "identity" and self.adapter_layer_norm:
            raise ValueError(
                "adapter_init='identity' needs adapter_layer_norm=False: an adapter that ends in a LayerNorm "
                "is not the identity; use adapter_init='as-published' to keep the LayerNorm"
            )
        has_lora = factor is not None and "lora" in self.adapter_kind.split("+")
        if has_lora and self.lora_rank > self.hidden_size:
            raise ValueError(
                f"lora_rank must be at most hidden_size ({self.hidden_size}), got {self.lora_rank}"
            )
        unknown = set(self.lora_layers or ()) - {*ATTENTION_LAYERS, *FFN_LAYERS}
        if unknown or self.lora_layers is not None and not self.lora_layers:
            raise ValueError(
                f"lora_layers must name some of {', '.join((*ATTENTION_LAYERS, *FFN_LAYERS))}, or be None for all, "
                f"got {self.lora_layers!r}"
            )

    def _check_depths(self) -> None:
        depths, threshold = self.elastic_depths, self.exit_threshold
        if depths is not None:
            whole = all(_is_number(depth, int) for depth in depths)
            if not depths or not whole or min(depths) < 1 or sorted(set(depths)) != list(depths):
                raise ValueError(
                    "elastic_depths must be numbers of iterations from 1, ascending and each once, or None, "
                    f"got {depths!r}"
                )
        if threshold is not None and (not _is_number(threshold) or not 0 < threshold <= 1):
            raise ValueError(f"exit_threshold must lie above 0 and up to 1, or be None, got {threshold!r}")

    def _check_groups(self) -> None:
        if self.hidden_group_order not in ("runs", "turns", "ends"):
            raise ValueError(
                f"hidden_group_order must be 'runs', 'turns' or 'ends', got {self.hidden_group_order!r}"
            )
        least = 3 if self.hidden_group_order == "ends" else 1
        if not least <= self.num_hidden_groups <= self.num_hidden_layers:
            raise ValueError(
                f"num_hidden_groups must lie between {least} (hidden_group_order {self.hidden_group_order!r}) and "
                f"num_hidden_layers ({self.num_hidden_layers}), got {self.num_hidden_groups}"
            )

    def _tell_idle(self) -> None:
        """Say which settings of what iterations share, and of what tells them apart, change nothing."""
        groups = self.num_hidden_groups
        kinds = "none" if self.adapter_reduction_factor is None else self.adapter_kind
        lora = "lora" in kinds.split("+")
        uses = {
            "hidden_group_order": 1 < groups < self.num_hidden_layers, "groups_share_attention": groups > 1,
            "adapter_kind": kinds != "none", "lora_rank": lora, "lora_layers": lora,
        }  # fmt: skip
        for name in (one for one, used in uses.items() if not used and getattr(self, one) != LATER[one]):
            _warn_once(f"{name}={getattr(self, name)!r} has no effect: {groups=}, adapters={kinds!r}")

    def group_of(self, iteration: int) -> int:
        """Return which block an iteration applies, both from 0; iterations past the last trained one are as that."""
        groups, last = self.num_hidden_groups, self.num_hidden_layers - 1
        iteration = min(iteration, last)
        if self.hidden_group_order == "turns":
            return iteration % groups
        if self.hidden_group_order == "runs":
            return iteration * groups // (last + 1)
        inner = 1 + (iteration - 1) * (groups - 2) // max(last - 1, 1)
        return {0: 0, last: groups - 1}.get(iteration, inner)

    @property
    def adapter_size(self) -> int | None:
        """Width of the adapters' bottleneck (768 // 16 = 48 in the paper); None without adapters."""
        if self.adapter_reduction_factor is None:
            return None
        return self.hidden_size // self.adapter_reduction_factor

    def to_dict(self) -> dict[str, Any]:
        """Return the serialisable configuration with an `auto_map` that names every class.

        Saving one head through Transformers records that head only, and a reader that asks for the
        bare encoder then fails; so all are listed, always.
        """
        values = {**super().to_dict(), "auto_map": dict(AUTO_MAP)}
        return {key: value for key, value in values.items() if key not in LATER or value != LATER[key]}

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return `config.json` of a directory or hub id; one of the paper's release is translated."""
        try:
            config_dict, unused = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        except (RecursionError, TypeError, AttributeError) as error:  # no object, or nested too deeply
            raise OSError(f"{pretrained_model_name_or_path}: config.json is not a configuration") from error
        if not isinstance(config_dict, dict):
            raise OSError(f"{pretrained_model_name_or_path}: its config.json holds no JSON object")
        if config_dict.get("model_type") == "albert":
            config_dict = config_from_release(config_dict)
        return config_dict, unused

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> MiniAlbertConfig:
        """Build a configuration from a dictionary of ours or of the paper's release; arguments as in Transformers.

        Raises ValueError if the dictionary describes an ordinary ALBERT or another architecture.
        """
        model_type = config_dict.get("model_type", cls.model_type)
        if model_type == "albert":
            config_dict = config_from_release(config_dict)
        elif model_type != cls.model_type:
            raise ValueError(
                f"expected a MiniALBERT configuration, got model_type {model_type!r}: load it with "
                "Transformers' Auto classes instead"
            )
        labels = config_dict.get("num_labels", 2)
        if isinstance(labels, int) and labels > _MOST_LABELS:  # each would get a name
            raise ValueError(f"num_labels must be at most {_MOST_LABELS}, got a larger number")
        try:
            return super().from_dict(config_dict, **kwargs)
        except (StrictDataclassError, TypeError, AttributeError, LookupError, ArithmeticError) as error:
            raise ValueError(f"a value of the configuration does not fit: {str(error)[:200]}") from error


def config_from_release(release: dict[str, Any]) -> dict[str, Any]:
    """Return, for `MiniAlbertConfig.from_dict`, what a `config.json` of the paper's code says.

    That has the model_type "albert" and the extra keys `use_adapter` and `reduction_factor`. Raises ValueError if it is
    of an ordinary ALBERT, or one with several groups of layers.
    """
    if not any(key in release for key in _RELEASE_KEYS):
        raise ValueError(
            "this config.json describes an ordinary ALBERT, not a student of the MiniALBERT release "
            f"(no {' or '.join(_RELEASE_KEYS)}): load it with transformers.AutoModel"
        )
    for key in ("num_hidden_groups", "inner_group_num"):
        if release.get(key, 1) != 1:
            raise ValueError(f"a MiniALBERT student has one shared block, but {key} is {release[key]}")
    carried = (*_ALBERT_DEFAULTS, "id2label", "label2id", "architectures", "problem_type")
    dropout = release.get("classifier_dropout")
    try:
        factor = int(release.get("reduction_factor", 16)) if release.get("use_adapter") else None
    except (TypeError, OverflowError) as error:
        raise ValueError("reduction_factor must be an integer") from error
    kept = {
        **{key: value for key, value in {**_ALBERT_DEFAULTS, **release}.items() if key in carried},
        "classifier_dropout": release.get("classifier_dropout_prob", 0.1) if dropout is None else dropout,
        "adapter_reduction_factor": factor,
        "adapter_layer_norm": True,
        "adapter_init": "as-published",
        "tie_word_embeddings": False,
        "model_type": MiniAlbertConfig.model_type,
    }
    return json.loads(json.dumps(kept))
