"""Classifiers whose confidence differs by input and iteration."""

from __future__ import annotations

import pytest
import torch

from minialbert import MiniAlbertConfig, MiniAlbertForSequenceClassification, MiniAlbertForTokenClassification

DEPTH = 4
HEADS = {
    "single": (MiniAlbertForSequenceClassification, "single_label_classification"),
    "multi": (MiniAlbertForSequenceClassification, "multi_label_classification"),
    "token": (MiniAlbertForTokenClassification, None),
}
KINDS = pytest.mark.parametrize("kind", HEADS)


def build(kind="single", *, spread=0.5, attention="sdpa", **overrides):
    """A classifier of four iterations whose confidence differs by input and iteration."""
    model_class, problem = HEADS[kind]
    values = {
        "vocab_size": 61, "embedding_size": 8, "hidden_size": 32, "num_hidden_layers": DEPTH,
        "num_attention_heads": 4, "intermediate_size": 48, "max_position_embeddings": 16, "num_labels": 3,
        "adapter_reduction_factor": 8, "problem_type": problem,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = MiniAlbertConfig(**{**values, **overrides}, attn_implementation=attention)
        model = model_class(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(spread * 0.4 * torch.randn_like(parameter))
            model.classifier.weight.normal_(std=spread)
    return model
