"""From a trained model to a folder with one ONNX graph, fp32 or int8, that was proved to compute the same."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from minialbert_runtime.answers import Decision
from minialbert_runtime.folder import EXPORT_FILE, MODEL_FILE, ONE_LENGTH, TOKENIZER_FILE, version_of
from minialbert_runtime.session import has_openvino
from numpy.typing import NDArray
from onnx import ModelProto
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from minialbert.data.tokenizers import load_tokenizer
from minialbert.deploy.onnx.graph import keep_biases_apart, slim, weight_bytes
from minialbert.deploy.onnx.int8 import (
    ActivationRange,
    activation_ranges,
    errors_by_iteration,
    four_bit_share,
    quantize_int8,
)
from minialbert.deploy.onnx.parity import TOLERANCES, Parity, measure_parity, parity_batches, parity_line
from minialbert.deploy.onnx.trace import DEFAULT_OPSET, OPSETS, outputs_of, trace_onnx
from minialbert.errors import MissingExtraError, UserError, display_name, failing_as, listed, needs_extra
from minialbert.method import encoders
from minialbert.method.sentence_vectors import SENTENCE_FILES, STAND_IN_FILE, Pooling, write_pooling
from minialbert.recipes.schema import TaskRecipe
from minialbert.runs.directory import RunDirectory
from minialbert.runs.files import check_apart, check_folder, whole_folder, write_json, writing
from minialbert.runs.records import lower_is_better, write_result
from minialbert.tasks.evaluate import evaluate
from minialbert.tasks.exported import OnnxEncoder
from minialbert.tasks.models import (
    TASK_FILE,
    TaskInputs,
    is_minialbert,
    load_task_tokenizer,
    read_task_file,
    usual_inputs,
)

logger = logging.getLogger(__name__)

PRECISIONS = {"onnx": ("fp32", "int8", "int8-dynamic", "int4"), "openvino": ("fp32", "int8")}  # by engine
# Largest file, as a share of the bytes of the model's tensors, each counted once.
SIZE_LIMITS = {"fp32": 1.1, "int8": 0.30, "int8-dynamic": 0.30, "int4": 0.30}
BY_TOKEN = ("int8", "int4")  # how activations are quantised
# A graph takes about 0.2 MB whatever the model's width; of a model of less than 10 MB that is not held against it.
_GRAPH_BYTES, _SMALL_MODEL = 400_000, 10_000_000
_CALIBRATION_TEXTS = 256
_BUILT_IN_TEXTS, _BUILT_IN_TOKENS = 64, 128
_CONTRACT = ("head", "precision", "opset", "iterations", "engines")
_OPTIONAL_FILES = (TASK_FILE, STAND_IN_FILE, *SENTENCE_FILES)
_SIZES = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
    "max_position_embeddings", "type_vocab_size", "pad_token_id",
)  # fmt: skip


def export_onnx(
    model_name: str,
    output: str | Path,
    *,
    head: str | None = None,
    precision: str = "fp32",
    engine: str = "onnx",
    opset: int = DEFAULT_OPSET,
    num_iterations: int | None = None,
    calibration: Iterable[str] | None = None,
    task: TaskRecipe | None = None,
    split: str | None = None,
    max_drop: float = 1.0,
    tolerance: float | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Export a model to a folder: graph, config, tokenizer, and a record of the proof.

    The folder appears only when the graph passed: its outputs are compared with the model's on batches of several
    sizes and lengths with padding, its size with that of the model's tensors, and where a task is given its score
    with the model's. The model is one of our students, or any encoder whose attention goes through Transformers'
    registry; options are those of `minialbert.export`, and None is the model's or the precision's own value.

    Activations of "int8" are quantised by token, so that a text gets the same bits beside any other texts of its
    length; those of "int8-dynamic" by the range of a whole run. "int4" is "int8" with matrices and lookup tables stored
    in 4 bits. From opset 23 on attention is one operator. With the `engine` "openvino" the activations of "int8" have
    fixed ranges, of their own in every iteration, from the first 256 texts of `calibration`; without, from passages of
    Python's documentation. Such a graph is compared with the model in OpenVINO and in ONNX Runtime, and runs in both.

    Returns the record that is left in `result.json`; `export.json` holds what a runtime needs of it. A UserError tells
    that the model, an option or the target is at fault, or that the graph does not pass; nothing is written.
    """
    _check_options(precision, engine, opset, max_drop, tolerance)
    if engine == "openvino" and not has_openvino():
        raise MissingExtraError("openvino", "openvino", "export for OpenVINO")
    if calibration is not None and (engine, precision) != ("openvino", "int8"):
        raise UserError("--calibration is for --engine openvino --quantize int8: others need no text")
    check_apart(Path(output), [model_name])
    check_folder(Path(output), "export", overwrite=overwrite, marker=EXPORT_FILE)
    model, tokenizer, head, inputs = _load(model_name, head)
    if task is not None and inputs is None:
        raise UserError(f"{model_name} was not tuned for a task, so that there is nothing to evaluate on")
    if num_iterations is not None and (num_iterations < 1 or not is_minialbert(model)):
        raise UserError(
            f"num_iterations must be at least 1, got {num_iterations}"
            if is_minialbert(model)
            else f"only a MiniALBERT can be exported at another depth, not a {model.config.model_type} model"
        )
    pooling = encoders.find_pooling(model_name) if head == "features" else None
    longest = min(encoders.max_input_length(model), 512 if inputs is None else max(inputs.max_length, 16))
    graph = _trace(model, head, opset, num_iterations, pooling)
    ranges, exact, rounded = None, ModelProto(), dict[str, Any]()
    if precision == "fp32":
        keep_biases_apart(graph)
    else:
        if engine == "openvino":
            texts = calibration_batches(model, tokenizer, calibration, max_length=longest)
            ranges = activation_ranges(graph, texts)
        exact.CopyFrom(graph)
        rounded = _quantize(graph, model_name, precision, ranges)
    depth = {} if num_iterations is None else {"num_iterations": num_iterations}
    tensors = {tensor.data_ptr(): tensor for tensor in model.state_dict().values()}  # each once
    state_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    with writing(output, advice=None), whole_folder(output, replaces=_OPTIONAL_FILES) as staging:
        onnx.save(slim(graph), staging / MODEL_FILE)
        size = (staging / MODEL_FILE).stat().st_size
        _check_size(graph, size, state_bytes, precision)
        engines = ("openvino", "onnx") if engine == "openvino" else ("onnx",)
        if tolerance is None:
            tolerance = TOLERANCES[precision if ranges is None else "int8, fixed ranges"]
        batches = parity_batches(model, tokenizer, max_length=longest)
        compared = outputs_of(head) if pooling is None else ("sentence_embedding",)
        parities = {}
        for one in engines:
            exported = OnnxEncoder(staging / MODEL_FILE, model.config, engine=one)
            parities[one] = measure_parity(
                model, exported, batches, compared, pooling=pooling, tolerance=tolerance, **depth
            )
            _check_parity(parities[one], f"{precision} graph in {one}")
        record = {
            "kind": "export", "task": inputs.task or None if inputs is not None else None, "seed": None,
            "model": {
                "name": display_name(model_name), "model_type": model.config.model_type,
                "parameters": model.num_parameters(), "bytes": state_bytes,
            },
            "head": head, "precision": precision, "opset": opset,
            "iterations": num_iterations or getattr(model.config, "num_hidden_layers", None),
            "bytes": size, "bytes_of_model": round(size / state_bytes, 4), "parity": parities[engine].to_dict(),
            "metrics": {},
        } | rounded | ({} if engine == "onnx" else {"engines": list(engines)})  # fmt: skip
        if precision != "fp32" and is_minialbert(model):
            record["errors_by_iteration"] = errors_by_iteration(model, exact, graph, batches, **depth)
        _write_rest(staging, model, tokenizer, inputs, record)
        if pooling is not None:
            width, most = model.config.hidden_size, encoders.longest_text(model, pooling)
            stand_in = _stand_in(model.config) if is_minialbert(model) else None
            write_pooling(staging, pooling, width=width, max_tokens=most, stand_in=stand_in)
            size, prompts = pooling.width(width, model_name), dict(pooling.prompts)
            vectors = {"size": size, "max_length": most, "prompts": prompts}
            contract = json.loads((staging / EXPORT_FILE).read_text(encoding="utf-8"))
            write_json(staging / EXPORT_FILE, contract | {"vectors": vectors})
        if task is not None:
            # At full depth, which is what the graph runs.
            exits = {"exit_threshold": 1.0} if getattr(model.config, "exit_threshold", None) else {}
            options = {"num_iterations": num_iterations, **exits}
            record["metrics"] = _evaluated(model_name, staging, task, split, max_drop, options)
        record = write_result(RunDirectory(staging).result, record)
    return record


def _quantize(
    graph: ModelProto, name: str, precision: str, ranges: Mapping[str, ActivationRange] | None
) -> dict[str, float]:
    """Quantise a graph, and return what its record says of that; refuse int4 that would be int8."""
    by_call, four_bits = precision == "int8-dynamic", precision == "int4"
    quantize_int8(graph, ranges, by_call=by_call, four_bits=four_bits)
    if not four_bits:
        return {}
    share = four_bit_share(graph)
    if not share:
        told = "a matrix needs a multiple of 16 inputs, and a lookup table at least 65,536 values; take int8"
        raise UserError(f"{name} has nothing that int4 stores in 4 bits: {told}")
    logger.info("int4: %.0f %% of the quantised weights have 4 bits", 100 * share)
    return {"four_bits": round(share, 4)}


def calibration_batches(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    texts: Iterable[str] | None,
    *,
    max_length: int,
    limit: int = _CALIBRATION_TEXTS,
) -> list[dict[str, NDArray[np.int64]]]:
    """Return the first `limit` texts that are not empty as inputs of a graph, one each, so that no padding counts.

    Without texts they are passages of Python's documentation, which is said.
    """
    if texts is None:
        from pydoc_data.topics import topics

        texts, limit, max_length = topics.values(), _BUILT_IN_TEXTS, min(_BUILT_IN_TOKENS, max_length)
        logger.info(
            "the int8 ranges are those of %d passages of Python's documentation: give --calibration for those of "
            "your own texts",
            limit,
        )
    batches: list[dict[str, NDArray[np.int64]]] = []
    for text in texts:
        if not text.strip():
            continue
        encoded = tokenizer(text, truncation=True, max_length=max_length, return_tensors="pt")
        batch = {"token_type_ids": torch.zeros_like(encoded["input_ids"]), **encoded}
        inputs = encoders.forward_inputs(model, batch)
        batches.append({name: tensor.numpy() for name, tensor in inputs.items()})
        if len(batches) == limit:
            break
    if not batches:
        raise UserError("int8 for OpenVINO needs text to calibrate on, and the calibration file has none")
    return batches


def _check_options(precision: str, engine: str, opset: int, max_drop: float, tolerance: float | None) -> None:
    precisions = PRECISIONS.get(engine, ())
    known = precision in precisions
    rules = {
        f"unknown engine {engine!r}: expected {' or '.join(PRECISIONS)}": engine in PRECISIONS,
        f"unknown precision {precision!r} for {engine}: expected one of {listed(precisions)}": known,
        f"opset {opset!r} is not supported: expected {OPSETS[0]} to {OPSETS[-1]}": opset in OPSETS,
        f"max_drop is in points, from 0 to 100; got {max_drop}": 0 <= max_drop <= 100,
        f"tolerance is a share of the largest output, above 0 and up to 1; got {tolerance}": (
            tolerance is None or 0 < tolerance <= 1
        ),
    }
    for fault, holds in rules.items():
        if not holds:
            raise UserError(fault)


def _load(
    name: str, head: str | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast, str, TaskInputs | None]:
    """Return model, tokenizer, head, and of a tuned model how it wants its inputs."""
    config = encoders.load_encoder_config(name)
    architecture, own = (config.architectures or [""])[0], encoders.head_of(config)
    if head is not None and head not in encoders.HEADS:
        raise UserError(f"unknown head {head!r}: expected one of {', '.join(encoders.HEADS)}")
    if own is None and head is None:
        raise UserError(
            f"{name}: its config names no known architecture ({architecture or 'none'}): give --head"
        )
    if head not in (None, own, "features"):
        advice = f"leave --head out to export it as {own}, or tune it first (minialbert finetune)"
        raise UserError(f"{name} has no head for {head}: it is a {architecture or 'bare encoder'}; {advice}")
    chosen = str(head or own)
    loaded = encoders.load_encoder(name, chosen, config=config)
    missing = [key for key in loaded.missing if "pooler" not in key]
    if missing:
        raise UserError(f"{name} lacks weights of its {chosen} model: {', '.join(missing[:4])}")
    has_task = chosen not in ("features", "masked-lm")
    inputs = read_task_file(name) or usual_inputs(name, loaded.model, chosen) if has_task else None
    token = chosen == "token-classification"
    tokenizer = load_task_tokenizer(name, words=True) if token else load_tokenizer(name)
    if tokenizer.pad_token_id is None:
        raise UserError(f"the tokenizer of {name} has no padding token: add one, as pad_token in its config")
    return loaded.model, tokenizer, chosen, inputs


def _trace(
    model: PreTrainedModel, head: str, opset: int, num_iterations: int | None, pooling: Pooling | None = None
) -> ModelProto:
    # The exporter's own errors are of many kinds.
    untraced = f"torch's exporter could not trace this {model.config.model_type} model"
    advice = "" if is_minialbert(model) else "distil it, and export the student"
    with failing_as(untraced, Exception, advice), needs_extra("export", "export to ONNX"):
        try:
            return trace_onnx(model, head, opset=opset, num_iterations=num_iterations, pooling=pooling)
        except RuntimeError as error:  # of which it says how to report it, and its cause what it is
            raise error.__cause__ or error from None


def _check_size(graph: ModelProto, size: int, state_bytes: int, precision: str) -> None:
    limit = SIZE_LIMITS[precision] * state_bytes + (_GRAPH_BYTES if state_bytes < _SMALL_MODEL else 0)
    if size > limit:
        raise UserError(
            f"the {precision} file has {size:,} bytes ({weight_bytes(graph):,} of them weights), more than "
            f"{SIZE_LIMITS[precision]} of the model's {state_bytes:,}: a weight is stored twice, or not as int8"
        )


def _check_parity(parity: Parity, what: str) -> None:
    if not parity.holds:
        raise UserError(
            f"the {what}: its outputs differ too much from the model's: {parity_line(parity.to_dict())}; "
            "nothing was written. Give a larger --tolerance only if a score (--task) shows that it does no harm"
        )


def _write_rest(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    inputs: TaskInputs | None,
    record: dict[str, Any],
) -> None:
    values = model.config.to_dict()
    values.pop("auto_map", None)  # names Python files, which an export has none of
    values.pop("exit_threshold", None)  # a graph runs one depth
    values.pop("_name_or_path", None)  # where the model lay, on this machine
    values["architectures"] = [type(model).__name__]
    write_json(folder / "config.json", values)
    tokenizer.save_pretrained(folder)
    _rename_for_transformers_4(folder / "tokenizer_config.json")
    tokenizer.backend_tokenizer.save(str(folder / TOKENIZER_FILE), pretty=False)  # a third smaller
    if inputs is not None:
        write_json(folder / TASK_FILE, inputs.to_json())
    version = version_of(Decision() if inputs is None else inputs.decision)
    contract = {"format_version": version} | {name: record[name] for name in _CONTRACT if name in record}
    if record["precision"] in BY_TOKEN:
        contract["batches"] = ONE_LENGTH
    write_json(folder / EXPORT_FILE, contract)


def _rename_for_transformers_4(file: Path) -> None:
    """Give a tokenizer's settings the names that they had before Transformers 5, which reads those too."""
    settings = json.loads(file.read_text(encoding="utf-8"))
    if settings.get("tokenizer_class") == "TokenizersBackend":
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    if extra := settings.pop("extra_special_tokens", None):
        settings["additional_special_tokens"] = extra
    write_json(file, settings)


def _stand_in(config: PreTrainedConfig) -> dict[str, Any]:
    """Return a config that any version of Transformers knows, for who runs the graph in ONNX Runtime."""
    return {"model_type": "bert"} | {name: getattr(config, name) for name in _SIZES}


def _evaluated(
    model_name: str,
    folder: Path,
    task: TaskRecipe,
    split: str | None,
    max_drop: float,
    options: dict[str, Any],
) -> dict[str, Any]:
    """Return the scores of model and graph, or refuse the graph."""
    before = evaluate(model_name, task=task, split=split, progress=False, **options).record
    after = evaluate(folder, task=task, split=split, progress=False).record
    if before["score"] is None or after["score"] is None:
        raise UserError(f"{before['task']}: the {before['split']} split has no labels to score on")
    sign = -100 if lower_is_better(before["metric"]) else 100
    drop = sign * (before["score"] - after["score"])
    if drop > max_drop:
        raise UserError(
            f"{before['task']} {before['metric']} gets worse by {drop:.2f} points, from {before['score']:.4f} to "
            f"{after['score']:.4f}, and at most {max_drop} were allowed (--max-drop): nothing was written"
        )
    sure = [record.get("certificate") or {} for record in (before, after)]
    parts = [part for part in ("per_type", "per_class") if part in sure[0]]
    recalls = [(sure[0].get(part) or {}, sure[1][part]) for part in parts]
    if lost := [
        f"{name} by {drop:.2f} points, from {one['recall']:.4f} to {found:.4f} of {one['support']:,}"
        for own, other in recalls
        for name, one in own.items()
        if (drop := 100 * (one["recall"] - (found := other.get(name, {"recall": 0.0})["recall"]))) > max_drop
    ]:
        raise UserError(
            f"{before['task']}: recall falls for {listed(lost)}, and at most {max_drop} points were allowed "
            "(--max-drop): nothing was written"
        )
    return {
        **{name: before[name] for name in ("task", "split", "metric", "rows")},
        "before": before["score"], "after": after["score"], "drop_points": round(drop, 4), "max_drop_points": max_drop,
        "certificates": dict(zip(("before", "after"), sure, strict=True)),
    }  # fmt: skip
