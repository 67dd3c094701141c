"""Exported folders with graphs so small that their outputs can be worked out by hand; no torch."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "king", "##s", "city", "river", "new", "was", "é", "."]
IDS = {token: index for index, token in enumerate(VOCABULARY)}
TAGS = ("O", "B-City", "I-City", "B-King")


def wordpiece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(vocab=IDS, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(VOCABULARY[:4])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", IDS["[CLS]"]), ("[SEP]", IDS["[SEP]"])],
    )
    # What a file may keep from training; the runtime must not heed it.
    tokenizer.enable_truncation(5)
    tokenizer.enable_padding(length=20)
    return tokenizer


def _model(nodes, inputs, outputs, given, constants) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "model",
        [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "sequence"]) for name in inputs],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, given) for name in outputs],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    return model


def _graph(table: np.ndarray, *, tokens: bool | None, inputs: Sequence[str]) -> onnx.ModelProto:
    """Logits are the table's rows of the tokens, or their sum where the mask is 1 plus 100 for each token of type 1."""
    if table.shape[1] == 2 and tokens is None:  # start and end of an answer
        nodes = [
            helper.make_node("Gather", [f"{side}s", "input_ids"], [f"{side}_logits"])
            for side in ("start", "end")
        ]
        columns = zip(("starts", "ends"), table.astype(np.float32).T, strict=True)
        return _model(nodes, inputs, ["start_logits", "end_logits"], ["batch", "sequence"], [
            numpy_helper.from_array(np.ascontiguousarray(column), name) for name, column in columns
        ])  # fmt: skip
    nodes = [helper.make_node("Gather", ["table", "input_ids"], ["rows"])]
    constants = [numpy_helper.from_array(table.astype(np.float32), "table")]
    if tokens:
        nodes.append(helper.make_node("Identity", ["rows"], ["logits"]))
    else:
        constants += [
            numpy_helper.from_array(np.array([1]), "second"),
            numpy_helper.from_array(np.array([2]), "third"),
            numpy_helper.from_array(np.array([100], np.float32), "hundred"),
        ]
        nodes += [
            helper.make_node("Unsqueeze", ["attention_mask", "third"], ["column"]),
            helper.make_node("Cast", ["column"], ["weights"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["rows", "weights"], ["weighted"]),
            helper.make_node("ReduceSum", ["weighted", "second"], ["sums"], keepdims=0),
        ]
        if "token_type_ids" in inputs:
            nodes += [
                helper.make_node("ReduceSum", ["token_type_ids", "second"], ["count"]),
                helper.make_node("Cast", ["count"], ["real"], to=TensorProto.FLOAT),
                helper.make_node("Mul", ["real", "hundred"], ["types"]),
                helper.make_node("Add", ["sums", "types"], ["logits"]),
            ]
        else:
            nodes.append(helper.make_node("Identity", ["sums"], ["logits"]))
    shape = ["batch", "sequence"][: 2 if tokens else 1]
    return _model(nodes, inputs, ["logits"], [*shape, table.shape[1]], constants)


@pytest.fixture
def exported(tmp_path: Path) -> Callable[..., Path]:
    """Write an exported folder; `table` has a row of logits for each token of the vocabulary."""

    def write(
        problem: str,
        labels: Sequence[str],
        table: np.ndarray,
        *,
        max_length: int = 16,
        overlap: int = 4,
        inputs: Sequence[str] = ("input_ids", "attention_mask"),
        tokenizer: Tokenizer | None = None,
    ) -> Path:
        folder = tmp_path / "exported"
        folder.mkdir()
        tokens = {"token": True, "question-answering": None}.get(problem, False)
        heads = {True: "token-classification", None: "question-answering", False: "sequence-classification"}
        onnx.save(_graph(table, tokens=tokens, inputs=inputs), str(folder / "model.onnx"))
        (tokenizer or wordpiece()).save(str(folder / "tokenizer.json"))
        files: dict[str, dict[str, Any]] = {
            "config.json": {
                "id2label": {str(index): label for index, label in enumerate(labels)},
                "pad_token_id": 0,
            },
            "tokenizer_config.json": {"pad_token": "[PAD]", "unk_token": {"content": "[UNK]"}},
            "task.json": {
                "task": "test",
                "problem": problem,
                "metric": "accuracy",
                "max_length": max_length,
                "overlap": overlap,
            },
            "export.json": {
                "format_version": 1,
                "head": heads[tokens],
                "precision": "fp32",
                "opset": 18,
            },
        }
        for name, values in files.items():
            (folder / name).write_text(json.dumps(values), encoding="utf-8")
        return folder

    return write


@pytest.fixture
def tagger(exported: Callable[..., Path]) -> Path:
    """Tags "city" B-City, "river" I-City and "king" B-King with a margin of ln 9, all else O."""
    table = np.zeros((len(VOCABULARY), len(TAGS)))
    table[:, 0] = np.log(9)
    for token, tag in (("city", "B-City"), ("river", "I-City"), ("king", "B-King")):
        table[IDS[token]] = 0
        table[IDS[token], TAGS.index(tag)] = np.log(9)
    return exported("token", TAGS, table)


@pytest.fixture
def classifier(exported: Callable[..., Path]) -> Path:
    """Each "king" counts 1 for "a", each "river" 2 for "b"; "c" has none."""
    return exported("single-label", ("a", "b", "c"), counting_table())


def counting_table() -> np.ndarray:
    table = np.zeros((len(VOCABULARY), 3))
    table[IDS["king"], 0], table[IDS["river"], 1] = 1, 2
    table[IDS["[PAD]"]] = 50  # would show, were the mask not fed
    return table
