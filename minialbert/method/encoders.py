"""One door to any Transformers encoder, with whatever head, and one view of all of them.

`load_encoder` opens a directory or hub id, and says in one line that weights do not fit their config. `view_encoder`
returns hidden states, attention rows and logits, at the layers and positions that a `Request` asks for.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import logging
import pickle
import struct
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from minialbert.data.packing import block_mask
from minialbert.data.tokenizers import load_tokenizer
from minialbert.errors import UserError, listed
from minialbert.errors import one_line as first_line
from minialbert.method.configuration_minialbert import MiniAlbertConfig
from minialbert.method.fast.recording import RECORDING, record_attention, records_attention, route_attention
from minialbert.method.modeling_minialbert import (
    MiniAlbertForMaskedLM,
    MiniAlbertForQuestionAnswering,
    MiniAlbertForSequenceClassification,
    MiniAlbertForTokenClassification,
    MiniAlbertModel,
    MiniAlbertPreTrainedModel,
)
from minialbert.method.objective import EncoderView, Request
from minialbert.runs.untrusted import check_config, check_model_folder


@dataclass(frozen=True)
class Head:
    """A kind of model: our class, Transformers' Auto class and pipeline for it, and what to call it."""

    ours: type[MiniAlbertPreTrainedModel]
    auto: Any
    pipeline: str
    description: str

    @property
    def suffix(self) -> str:
        """How the names of its classes end, whatever the family."""
        return self.ours.__name__.removeprefix("MiniAlbert")


HEADS: dict[str, Head] = {
    "features": Head(MiniAlbertModel, AutoModel, "feature-extraction", "encoder without a head"),
    "masked-lm": Head(
        MiniAlbertForMaskedLM, AutoModelForMaskedLM, "fill-mask", "encoder with a masked-language-modelling head"
    ),
    "sequence-classification": Head(
        MiniAlbertForSequenceClassification, AutoModelForSequenceClassification,
        "text-classification", "encoder with a head that classifies a text",
    ),
    "token-classification": Head(
        MiniAlbertForTokenClassification, AutoModelForTokenClassification,
        "token-classification", "encoder with a head that labels every token",
    ),
    "question-answering": Head(
        MiniAlbertForQuestionAnswering, AutoModelForQuestionAnswering,
        "question-answering", "encoder with a head that marks the span of an answer",
    ),
}  # fmt: skip
ARCHITECTURES: dict[str, Head] = {head.ours.__name__: head for head in HEADS.values()}

# Encoders whose positions are a table, or differences within a window (MPNet), and whose attention takes any
# mask. ModernBERT is none of them: its local layers would lose their own mask to the one given here.
PACKING_FAMILIES = frozenset(
    {
        "albert", "bert", "camembert", "distilbert", "electra", "minialbert", "mpnet", "roberta", "xlm-roberta",
    }
)  # fmt: skip
_MOST_LABELS, _MOST_LAYERS = 1_000_000, 1_000
_BOOL_MASKS = frozenset({RECORDING, "sdpa"})

LOADING_ERRORS = (
    OSError, ValueError, LookupError, RuntimeError, TypeError, AttributeError, ArithmeticError, AssertionError,
    MemoryError, SafetensorError, EOFError, ImportError, pickle.UnpicklingError, struct.error, StrictDataclassError,
)  # fmt: skip

# Loggers and marks of what Transformers writes about weights that a checkpoint does not have.
_REPORTERS = ("transformers.modeling_utils", "transformers.utils.loading_report")
_REPORTS = ("LOAD REPORT", "newly initialized", "Some weights of", "This checkpoint seem corrupted")


# Loading


@dataclass(frozen=True)
class LoadedEncoder:
    """A model in fp32 and eval mode, and what its checkpoint lacks: names of weights that were drawn anew.

    `missing` are of the head, or of a pooler that nothing trained; `misshapen` those of a head because the
    checkpoint's have another shape.
    """

    model: PreTrainedModel
    missing: tuple[str, ...]
    misshapen: tuple[str, ...]

    @property
    def has_head(self) -> bool:
        """Whether every part of the head came with the checkpoint, in whatever shape."""
        return all(_is_of_encoder(self.model, key) for key in self.missing)


def load_encoder(
    name: str | Path,
    head: str = "masked-lm",
    *,
    config: PreTrainedConfig | None = None,
    revision: str | None = None,
    role: str = "",
    new_head: bool = False,
) -> LoadedEncoder:
    """Return the encoder at a directory or hub id: one of ours, of the paper's release, or any of Transformers.

    `head` is one of `HEADS`, drawn from torch's global generator where the checkpoint has none, and with
    `new_head` also where it has another shape than the config's. `config` is from `load_encoder_config`,
    perhaps changed; read anew when absent. Messages call the model by its `role`. What Transformers writes
    about parts that a checkpoint does not have is left out: a head that is missing is for the caller to
    judge. Raises UserError if there is no such model, its files are damaged, it is no encoder, or its weights
    do not fit its config.
    """
    config = config if config is not None else load_encoder_config(name, revision=revision)
    called = f"{role} {name}".strip()
    try:
        with quiet_loading():
            model, info = HEADS[head].auto.from_pretrained(
                name,
                config=config,
                revision=revision,
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # told below, by key name
                trust_remote_code=False,
            )
    except LOADING_ERRORS as error:
        raise UserError(f"{called}: its weights could not be loaded ({one_line(error)})") from error
    missing = sorted(info["missing_keys"])
    misshapen = sorted(key for key, *_ in info["mismatched_keys"])
    wrong = [key for key in missing if _is_of_encoder(model, key) and "pooler." not in key]
    wrong += [key for key in misshapen if _is_of_encoder(model, key) or not new_head]
    if wrong:
        raise UserError(
            f"{called}: its weights do not fit its config.json; missing or of another shape: "
            f"{', '.join(sorted(wrong)[:4])}{' …' if len(wrong) > 4 else ''}"
        )
    return LoadedEncoder(model, tuple(missing), tuple(misshapen))


def _is_of_encoder(model: PreTrainedModel, key: str) -> bool:
    return model.base_model is model or key.startswith(f"{model.base_model_prefix}.")


@contextlib.contextmanager
def quiet_loading() -> Iterator[None]:
    """Keep Transformers' reports about the weights of models that this thread loads inside the block to ourselves."""
    thread = threading.get_ident()

    def is_other(record: logging.LogRecord) -> bool:
        return record.thread != thread or not any(mark in record.getMessage() for mark in _REPORTS)

    reporters = [logging.getLogger(name) for name in _REPORTERS]
    for reporter in reporters:
        reporter.addFilter(is_other)
    try:
        yield
    finally:
        for reporter in reporters:
            reporter.removeFilter(is_other)


def tell_misfit(
    expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], limit: int = 400
) -> str:
    """Return how the shapes of a file's tensors differ from a model's, by name: nothing where they do not.

    What is missing, unknown, or of another shape is told in about `limit` letters.
    """
    problems = {
        "missing": sorted(expected.keys() - found.keys()),
        "unknown": sorted(found.keys() - expected.keys()),
        "of another shape": [
            f"{key} (file {found[key]}, model {expected[key]})"
            for key in sorted(expected.keys() & found.keys())
            if found[key] != expected[key]
        ],
    }
    room = limit // max(1, sum(map(bool, problems.values())))
    return "; ".join(f"{what}: {listed(keys, room)}" for what, keys in problems.items() if keys)


def load_teacher(
    name: str | Path, *, revision: str | None = None, with_tokenizer: bool = True, role: str = "teacher"
) -> Teacher:
    """Return the teacher at a directory or hub id, with its masked-LM head where it has one.

    It is frozen and in eval mode. `role` is what messages call it: a student is read in the same way where it is to be
    looked at. Raises UserError as `load_encoder` does.
    """
    loaded = load_encoder(name, revision=revision, role=role)
    tokenizer = load_tokenizer(name, revision=revision) if with_tokenizer else None
    return Teacher(loaded.model, has_mlm_head=loaded.has_head, tokenizer=tokenizer, name=str(name))


def load_encoder_config(name: str | Path, *, revision: str | None = None) -> PreTrainedConfig:
    """Return the configuration with which the encoder at a directory or hub id is built.

    That of a checkpoint of the paper's release is a `MiniAlbertConfig`. Raises UserError where there is none that can
    be read, or it is not that of an encoder.
    """
    path = Path(name)
    if path.is_dir() and not (path / "config.json").is_file():
        raise UserError(f"{name} has no config.json: expected the directory of a Transformers model")
    if not path.exists() and str(name).startswith((".", "/", "~")):
        raise UserError(f"{name} does not exist: expected the directory of a Transformers model, or a hub id")
    check_model_folder(path)
    _check_counts(path / "config.json")
    try:
        config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
        if hasattr(config, "use_adapter"):
            config = MiniAlbertConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
    except LOADING_ERRORS as error:
        raise UserError(_not_loaded(str(name), error)) from error
    check_config(config, name)
    decoder = getattr(config, "is_decoder", False) or getattr(config, "is_encoder_decoder", False)
    if decoder or type(config) not in MODEL_FOR_MASKED_LM_MAPPING:
        raise UserError(
            f"{name} is a {config.model_type} {'decoder' if decoder else 'model'}, not an encoder: expected "
            "one that Transformers can load for masked language modelling (BERT, RoBERTa, ELECTRA, "
            "DistilBERT, MPNet, ModernBERT, …)"
        )
    if config.model_type != MiniAlbertConfig.model_type:
        vars(config).pop("auto_map", None)  # names code that was not run, and is not passed on
    return config


def head_of(config: PreTrainedConfig) -> str | None:
    """Return which of `HEADS` the checkpoint of a configuration has, by its architecture's name; None for another."""
    names = config.architectures
    architecture = str(names[0]) if isinstance(names, list) and names else ""
    return next((name for name, head in HEADS.items() if architecture.endswith(head.suffix)), None)


def _check_counts(file: Path) -> None:
    """Refuse counts of layers and labels that would keep Transformers building for hours."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # told by whoever reads it as a configuration
        return
    for key, value in values.items() if isinstance(values, dict) else ():
        most = _MOST_LABELS if key == "num_labels" else _MOST_LAYERS if "layers" in key else None
        if most is not None and isinstance(value, int) and value > most:
            raise UserError(f"{file}: {key} must be at most {most:,}")


def one_line(error: BaseException, limit: int = 200) -> str:
    """Return an exception's first line, cut to `limit` characters."""
    if isinstance(error, pickle.UnpicklingError):  # PyTorch's own advice is to run the code
        return "a .bin file is damaged or holds code, which is never run: get the weights as safetensors"
    return first_line(error, limit + 1)  # with the mark of what was cut


def _not_loaded(name: str, error: BaseException) -> str:
    text = str(error).lower()
    if "trust_remote_code" in text:
        return f"{name} needs Python code that comes with it, which is never run: give one that Transformers knows"
    offline = any(word in text for word in ("connect", "offline", "couldn't reach", "max retries", "network"))
    if not Path(name).exists() and offline:
        return (
            f"{name} is not a directory, not in the local cache, and the hub could not be reached: check the "
            "name and the network, or give a local directory"
        )
    return f"{name} could not be loaded as a Transformers model ({one_line(error)})"


# What an encoder says


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model in eval mode inside the block, and back."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def view_encoder(
    model: PreTrainedModel, batch: Mapping[str, Tensor], request: Request | None = None
) -> EncoderView:
    """Return what an encoder says about a batch, computing no more than is asked for.

    The masked-LM head runs on the positions asked for alone: at 15 % masking that removes a quarter of all FLOPs of a
    distillation step and 85 % of the logits' memory. A bare encoder may be asked for no logits. What the model's
    forward does not take of the batch is left out.
    """
    asked = request or Request()
    encoder = model.base_model
    inputs = forward_inputs(model if asked.positions is not None else encoder, batch)
    records = records_attention(model)
    assert records or not (asked.attention_inputs or asked.references)
    inputs["output_attentions"] = bool(asked.attention_layers) and not records
    with record_attention(asked) as recorder:
        if asked.positions is None:
            outputs, logits = encoder(**inputs, output_hidden_states=True), None
        else:
            handle = encoder.register_forward_hook(_SelectRows(asked.positions))
            try:
                outputs = model(**inputs, output_hidden_states=True)
            finally:
                handle.remove()
            logits = outputs.logits.squeeze(0)
    if records:
        rows = recorder.rows
    else:
        attentions = outputs.attentions or ()
        rows = {layer: attentions[layer - 1] for layer in asked.attention_layers if layer <= len(attentions)}
    view = EncoderView(
        dict(enumerate(outputs.hidden_states)),
        rows,
        log_rows=records and not asked.after_dropout,
        logits=logits,
        attention_inputs=recorder.inputs,
        attention_divergences=recorder.divergences,
    )
    if asked.depths:
        masked = batch["labels"] != -100
        view.depth_logits = {
            depth: model.read_out(view.hidden_states[depth][masked]) for depth in asked.depths
        }
    return view


class _SelectRows:
    """Forward hook of the bare encoder: its head sees the chosen positions, as one sequence (1, M, D)."""

    def __init__(self, positions: Tensor) -> None:
        self.positions = positions

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:  # noqa: ANN401 - torch's signature
        output["last_hidden_state"] = output["last_hidden_state"][self.positions].unsqueeze(0)
        return output


def forward_inputs(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the entries of a batch that a model's forward takes (DistilBERT has no token types, …)."""
    if "sequence_ids" in batch:
        return packed_inputs(model, batch)
    accepted = inspect.signature(model.forward).parameters
    names = ("input_ids", "attention_mask", "token_type_ids")
    return {name: batch[name] for name in names if name in batch and name in accepted}


def supports_packing(model: PreTrainedModel) -> bool:
    """Return whether a model, with its attention as it is, gives packed windows the hidden states of separate ones."""
    encoder = model.base_model
    return (
        model.config.model_type in PACKING_FAMILIES
        and not getattr(model.config, "is_decoder", False)
        and model.config._attn_implementation in _BOOL_MASKS | {"eager"}
        and all("position_ids" in inspect.signature(part.forward).parameters for part in (model, encoder))
        # The function that hands on a 4-D mask as it is. In the first releases of Transformers 5 some
        # encoders prepare their masks by other means, which refuse one.
        and hasattr(sys.modules[type(encoder).__module__], "create_bidirectional_mask")
    )


def packed_inputs(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the arguments with which a model that `supports_packing` takes a batch of `PackedCollator`.

    The mask (R, 1, T, T) is bool, or additive in the model's precision for eager attention, which would add True as 1.
    Position ids are counted from where the model's own positions start (padding id + 1 in RoBERTa's kin).
    """
    accepted = inspect.signature(model.forward).parameters
    inputs: dict[str, Tensor] = {
        name: batch[name] for name in ("input_ids", "token_type_ids") if name in batch and name in accepted
    }
    mask = block_mask(batch["sequence_ids"])
    if model.config._attn_implementation not in _BOOL_MASKS:
        lowest = torch.finfo(model.dtype).min
        mask = torch.zeros_like(mask, dtype=model.dtype).masked_fill(~mask, lowest)
    inputs["attention_mask"] = mask
    offset = position_offset(model)
    # Padding keeps the row that such models reserve for it.
    inputs["position_ids"] = (batch["position_ids"] + offset).masked_fill(
        batch["sequence_ids"] < 0, max(offset - 1, 0)
    )
    return inputs


def enable_recording(model: PreTrainedModel) -> bool:
    """Route a model's attention through `recording.recording_attention`, or fall back to eager maps.

    Returns True when only matched layers pay for their maps; False for models that do not use the registry of attention
    functions (MPNet), which compute all maps in the open.
    """
    if route_attention(model):
        return True
    model.set_attn_implementation("eager")
    return False


@dataclass
class Teacher:
    """A fully parameterised encoder to learn from. It is not part of the trained module and never saved.

    `has_mlm_head` says whether a masked-LM head came with the checkpoint; the student uses the tokenizer too.
    """

    model: PreTrainedModel
    has_mlm_head: bool
    tokenizer: PreTrainedTokenizerBase | None = None
    name: str = ""

    def __post_init__(self) -> None:
        """Freeze the encoder, put it in eval mode and make its attention rows readable."""
        self.model.eval().requires_grad_(False)
        enable_recording(self.model)

    @property
    def num_layers(self) -> int:
        """Number of layers."""
        return int(self.model.config.num_hidden_layers)

    @property
    def hidden_size(self) -> int:
        """Width of the hidden states."""
        return int(self.model.config.hidden_size)

    @property
    def num_heads(self) -> int:
        """Attention heads per layer."""
        return int(self.model.config.num_attention_heads)

    @property
    def max_length(self) -> int:
        """Longest input in tokens; RoBERTa-like models keep the rows up to the padding id for padding."""
        return max_input_length(self.model)

    @torch.no_grad()
    def view(self, batch: Mapping[str, Tensor], request: Request | None = None) -> EncoderView:
        """Return the teacher's view of a batch, without gradients; without a masked-LM head it has no logits."""
        asked = request or Request()
        if not self.has_mlm_head:
            asked = replace(asked, positions=None)
        self.model.train(asked.after_dropout)
        half = self.model.dtype in (torch.float16, torch.bfloat16)
        # Weights that were cast once need no casting by autocast in every step.
        with torch.autocast(self.model.device.type, enabled=False) if half else contextlib.nullcontext():
            return view_encoder(self.model, batch, asked)


def max_input_length(model: PreTrainedModel) -> int:
    """Return the longest input of an encoder in tokens, without the rows reserved for padding."""
    return int(model.config.max_position_embeddings) - position_offset(model)


def position_offset(model: PreTrainedModel) -> int:
    """Return the row of the position table that the first token uses: 0; padding id + 1 in RoBERTa's kin."""
    embeddings = getattr(model.base_model, "embeddings", None)
    table = getattr(embeddings, "position_embeddings", None)
    padding = getattr(table, "padding_idx", None)
    return 0 if padding is None else int(padding) + 1
