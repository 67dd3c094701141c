"""One door to any Transformers encoder, with whatever head, and one view of all of them.

`load_encoder` opens a directory or hub id, and says in one line that weights do not fit their config. `view_encoder`
returns hidden states, attention rows and logits, at the layers and positions that a `Request` asks for.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import json
import logging
import pickle
import struct
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from minialbert_runtime.folder import find_folder, is_exported
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
    BertConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import cached_file

from minialbert.data.hub import sparing_attempts
from minialbert.data.packing import block_mask
from minialbert.data.pairs import means, translated
from minialbert.data.tokenizers import load_tokenizer
from minialbert.errors import UserError, listed, one_line, quoted
from minialbert.method.configuration_minialbert import MiniAlbertConfig
from minialbert.method.fast.recording import RECORDING, record_attention, records_attention, route_attention
from minialbert.method.graph_weights import read_weights
from minialbert.method.modeling_minialbert import (
    MiniAlbertForMaskedLM,
    MiniAlbertForQuestionAnswering,
    MiniAlbertForSequenceClassification,
    MiniAlbertForTokenClassification,
    MiniAlbertModel,
    MiniAlbertPreTrainedModel,
)
from minialbert.method.objective import EncoderView, Request
from minialbert.method.sentence_vectors import MODULES_FILE, Pooling, read_pooling
from minialbert.runs.directory import RunDirectory
from minialbert.runs.files import check_fetched
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
_MOST_LABELS, _MOST_LAYERS, _MOST_DRAWN = 1_000_000, 1_000, 100_000_000
# Tokens of the input that a teacher is tried on.
_TRIAL_TOKENS = 512
# What the configuration of a BERT from before kinds were named holds.
_BERT_KEYS = frozenset(
    {"hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "type_vocab_size"}
)
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
    """A model in eval mode, and what its checkpoint lacks: names of weights that were drawn anew.

    `missing` are of the head, or of a pooler that nothing trained; `misshapen` those of a head because the
    checkpoint's have another shape; `unknown` are of the checkpoint, and of no part of the model.
    """

    model: PreTrainedModel
    missing: tuple[str, ...]
    misshapen: tuple[str, ...]
    unknown: tuple[str, ...] = ()

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
    dtype: torch.dtype | str = torch.float32,
) -> LoadedEncoder:
    """Return the encoder at a directory or hub id: one of ours, of the paper's release, or any of Transformers.

    `head` is one of `HEADS`, drawn from torch's global generator where the checkpoint has none, and with
    `new_head` also where it has another shape than the config's. `config` is from `load_encoder_config`,
    perhaps changed; read anew when absent. Of an exported folder the weights are read from the graph. Messages
    call the model by its `role`. What Transformers writes about parts that a checkpoint does not have is left out:
    a head that is missing is for the caller to judge. Raises UserError if there is no such model, its files are
    damaged, it is no encoder, or its weights do not fit its config.
    """
    config = config if config is not None else load_encoder_config(name, revision=revision)
    called = f"{role} {name}".strip()
    exported = is_exported(name)
    try:
        with quiet_loading(), sparing_attempts(name):
            if Path(name).is_dir() and not exported:
                _check_size(Path(name), head, config)
            auto = HEADS[head].auto
            # Without a directory, an automatic class does not choose.
            kind = auto._model_mapping[type(config)] if exported else auto
            model, info = kind.from_pretrained(
                None if exported else name,
                state_dict=read_weights(find_folder(name)) if exported else None,
                config=config,
                revision=revision,
                dtype=dtype,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # told below, by key name
                trust_remote_code=False,
            )
    except UserError:
        raise
    except LOADING_ERRORS as error:
        for file in _weights(Path(name)):
            check_fetched(file)
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
    try_out(model, called)
    return LoadedEncoder(model, tuple(missing), tuple(misshapen), tuple(sorted(info["unexpected_keys"])))


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


def tell_misfit(expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]) -> str:
    """Return how the shapes of a file's tensors differ from a model's, by name: nothing where they do not.

    What is missing, unknown, or of another shape is told in about 400 letters.
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
    room = 400 // max(1, sum(map(bool, problems.values())))
    return "; ".join(f"{what}: {listed(keys, room)}" for what, keys in problems.items() if keys)


def load_teacher(
    name: str | Path,
    *,
    revision: str | None = None,
    with_tokenizer: bool = True,
    role: str = "teacher",
    length: int | None = None,
) -> Teacher:
    """Return the teacher at a directory or hub id, with its masked-LM head where it has one.

    It is frozen and in eval mode, and was tried on an input of `length` tokens. `role` is what messages call it: a
    student is read in the same way where it is to be looked at. Raises UserError as `load_encoder` does, and where it
    cannot teach.
    """
    loaded = load_encoder(name, revision=revision, role=role)
    tokenizer = load_tokenizer(name, revision=revision) if with_tokenizer else None
    return Teacher(loaded.model, loaded.has_head, tokenizer, str(name), length, role)


def repository_file(
    name: str | Path, file: str, revision: str | None = None, *, required: bool = True
) -> Path | None:
    """Return a file of a directory or hub id, at a git revision there, or None where it has no such file.

    Raises UserError where the hub does not give one that is `required`.
    """
    folder = find_folder(Path(name).expanduser())
    if folder.exists():
        return folder / file if (folder / file).is_file() else None
    try:
        found = cached_file(
            str(name), file, revision=revision, _raise_exceptions_for_missing_entries=required
        )
    except LOADING_ERRORS as error:
        raise UserError(
            f"{name} is not a directory, and the hub did not give its {file} ({one_line(error)})"
        ) from error
    return None if found is None else Path(found)


def find_pooling(name: str | Path, revision: str | None = None) -> Pooling | None:
    """Return how the sentence encoder at a directory or hub id pools, or None for a plain encoder.

    Of an encoder in a folder of its own inside of one of sentence-transformers it is what that one says.
    """
    inside = str(name).endswith("_Transformer") and Path(name, "..", MODULES_FILE).is_file()
    find = partial(repository_file, Path(name).parent if inside else name, revision=revision, required=False)
    return read_pooling(str(name), find) if find(MODULES_FILE) is not None else None


def longest_text(model: PreTrainedModel, pooling: Pooling) -> int:
    """Return after how many tokens a sentence encoder's texts are cut, or read in windows."""
    return min(pooling.max_tokens or max_input_length(model), max_input_length(model))


def word_rows(model: PreTrainedModel) -> int:
    """Return how many rows a model's word table has."""
    return int(model.get_input_embeddings().weight.shape[0])


def check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Refuse a tokenizer with ids that a model's word table has no row for."""
    rows = word_rows(model)
    if max(tokenizer.get_vocab().values()) >= rows:
        raise UserError(
            f"the tokenizer of {name} has ids beyond the {rows} rows of the model's word table: give the tokenizer "
            "that belongs to it, or save the model again after model.resize_token_embeddings(len(tokenizer))"
        )


def _read_config(name: str | Path, revision: str | None) -> PreTrainedConfig:
    try:
        config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
    except ValueError:  # SciBERT's names no kind
        values, _ = PreTrainedConfig.get_config_dict(name, revision=revision)
        if "model_type" in values or not values.keys() >= _BERT_KEYS:
            raise
        config = BertConfig.from_dict(values)
    if hasattr(config, "use_adapter"):
        return MiniAlbertConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
    return config


def load_encoder_config(name: str | Path, *, revision: str | None = None) -> PreTrainedConfig:
    """Return the configuration with which the encoder at a directory or hub id is built.

    That of a checkpoint of the paper's release is a `MiniAlbertConfig`. Raises UserError where there is none that can
    be read, or it is not that of an encoder.
    """
    name = find_folder(name) if is_exported(name) else name
    path, expected = Path(name), "expected the directory of a Transformers model"
    check_model_folder(path)
    if path.is_dir() and not (path / "config.json").is_file():
        # A run's model, or the encoder of sentence-transformers.
        inner = [*path.glob("model/config.json"), *path.glob("*_Transformer/config.json")]
        told = f"give {inner[0].parent}, where its model is" if inner else expected
        raise UserError(f"{name} has no config.json: {told}")
    # The folder of a hub id's owner may exist too; that of a run is no owner's.
    is_local = str(name).startswith((".", "/", "~")) or RunDirectory(path.parent).recipe.is_file()
    if not path.exists() and is_local:
        raise UserError(f"{name} does not exist: {expected}, or a hub id")
    _check_counts(path / "config.json")
    try:
        with sparing_attempts(name):
            config = _read_config(name, revision)
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
    if not path.exists() and (file := repository_file(name, "config.json", revision)):
        config._commit_hash = file.parent.name  # which later releases of Transformers 5 leave out
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
        if most is not None and isinstance(value, int) and not 0 <= value <= most:
            raise UserError(
                f"{file}: {key} must be at most {most:,}, and not below 0, but is {quoted(value, 20)}"
            )


def _weights(folder: Path) -> list[Path]:
    return [file for end in ("*.safetensors", "*.bin") for file in sorted(folder.glob(end))]


def _check_size(folder: Path, head: str, config: PreTrainedConfig) -> None:
    """Refuse a configuration of far more weights than are in the folder, before memory is taken for them."""
    held = sum(file.stat().st_size for file in _weights(folder))
    with torch.device("meta"):  # shapes alone
        described = HEADS[head].auto.from_config(config, trust_remote_code=False).num_parameters()
    if described > 2 * held + _MOST_DRAWN:  # weights of 4 bits, and a head that is drawn
        for file in _weights(folder):
            check_fetched(file)
        raise UserError(
            f"{folder}: its weights do not fit its config.json, which describes {described:,} numbers; the files hold "
            f"{held:,} bytes"
        )


def _not_loaded(name: str, error: BaseException) -> str:
    text = str(error).lower()
    if "trust_remote_code" in text:
        return f"{name} needs Python code that comes with it, which is never run: give one that Transformers knows"
    offline = any(word in text for word in ("connect", "offline", "couldn't reach", "max retries", "network"))
    if not Path(name).exists() and offline:
        return (
            f"{name} is not a directory, not in the local cache, and the hub could not be reached: check the "
            "name and the network, or give a local directory (HF_HUB_OFFLINE=1 spares the attempts)"
        )
    if not Path(name).exists() and "repo id" in text:
        return f"{name} is not a directory: give the directory of a model, or a hub id such as OWNER/NAME"
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
            handle = encoder.register_forward_hook(partial(_select_rows, asked.positions))
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
    if asked.pooling is not None:
        view.vectors = asked.pooling(outputs.last_hidden_state, batch)
    if asked.depths:
        masked = batch["labels"] != -100
        view.depth_logits = {
            depth: model.read_out(view.hidden_states[depth][masked]) for depth in asked.depths
        }
    return view


def _select_rows(positions: Tensor, module: nn.Module, args: Any, output: Any) -> Any:
    """Let the head see the chosen positions of a bare encoder's output alone, as one sequence (1, M, D)."""
    output["last_hidden_state"] = output["last_hidden_state"][positions].unsqueeze(0)
    return output


def forward_inputs(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the entries of a batch that a model's forward takes (DistilBERT has no token types, …)."""
    if "sequence_ids" in batch:
        return packed_inputs(model, batch)
    return _accepted(model, batch, "input_ids", "attention_mask", "token_type_ids")


def _accepted(model: PreTrainedModel, batch: Mapping[str, Tensor], *names: str) -> dict[str, Any]:
    accepted = inspect.signature(model.forward).parameters
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
    mask = block_mask(batch["sequence_ids"])
    if model.config._attn_implementation not in _BOOL_MASKS:
        lowest = torch.finfo(model.dtype).min
        mask = torch.zeros_like(mask, dtype=model.dtype).masked_fill(~mask, lowest)
    offset = position_offset(model)
    # Padding keeps the row that such models reserve for it.
    positions = (batch["position_ids"] + offset).masked_fill(batch["sequence_ids"] < 0, max(offset - 1, 0))
    inputs = _accepted(model, batch, "input_ids", "token_type_ids")
    return {**inputs, "attention_mask": mask, "position_ids": positions}


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

    `has_mlm_head` says whether a masked-LM head came with the checkpoint; the student uses the tokenizer too. The
    encoder is tried on one input of `length` tokens, and what that showed is kept: numbers of layers and heads, width,
    and `attention_fault`, why its attention maps are not rows of probabilities over the tokens ("" where they are).
    """

    model: PreTrainedModel
    has_mlm_head: bool
    tokenizer: PreTrainedTokenizerBase | None = None
    name: str = ""
    length: int | None = None
    role: str = "teacher"  # what messages call it
    translation: list[list[int]] | None = None  # for a student of another vocabulary, see `translate`
    num_layers: int = field(init=False)
    hidden_size: int = field(init=False)
    num_heads: int = field(init=False)
    attention_fault: str = field(init=False, default="")

    def __post_init__(self) -> None:
        """Freeze the encoder, put it in eval mode, make its attention rows readable, and see what it says."""
        if self.tokenizer is not None:
            check_vocabulary(self.model, self.tokenizer, f"{self.role} {self.name}".strip())
        self.model.eval().requires_grad_(False)
        records, config = enable_recording(self.model), self.model.config
        called = f"the {self.role} {self.name}".strip() + f" (of the kind {config.model_type})"
        if "attention_mask" not in forward_inputs(self.model, _trial(self.model, 4)):
            raise UserError(
                f"{called} takes no attention mask: its output depends on padding, so it cannot teach"
            )
        # Recorded rows are right at any length; of others some change with it (BigBird's).
        length = min(
            self.length or _TRIAL_TOKENS, self.max_length, _TRIAL_TOKENS if records else 2 * _TRIAL_TOKENS
        )
        layers = range(1, config_value(config, "num_hidden_layers", default=0) + 1)
        view = try_out(self.model, called, length, Request(attention_layers=layers))
        shapes = list(dict.fromkeys(tuple(states.shape) for states in view.hidden_states.values()))
        if [shape[:2] for shape in shapes] != [(1, length)]:
            raise UserError(
                f"{called} has no hidden state of one width for each of {length} tokens in each layer (but "
                f"{listed(shapes)}), so a student's iterations cannot be aligned with them: give another teacher"
            )
        self.num_layers, self.hidden_size = len(view.hidden_states) - 1, shapes[0][-1]
        self.num_heads = config_value(config, "num_attention_heads", default=0)
        self.attention_fault = _attention_fault(view, length)
        if not self.attention_fault:
            self.num_heads = view.attention_rows[1].shape[1]

    @property
    def max_length(self) -> int:
        """Longest input in tokens; RoBERTa-like models keep the rows up to the padding id for padding."""
        return max_input_length(self.model)

    def words(self, rows: Tensor) -> Tensor:
        """Return rows for the words of the student's vocabulary, from one for each word of its own, (V, ...)."""
        return rows if self.translation is None else translated(rows, self.translation)

    @torch.no_grad()
    def view(self, batch: Mapping[str, Tensor], request: Request | None = None) -> EncoderView:
        """Return the teacher's view of a batch, without gradients; without a masked-LM head it has no logits.

        Of a batch of `PairedCollator` it has hidden states and vectors alone: for each of the student's tokens the mean
        over the teacher's that go with it.
        """
        asked = request or Request()
        if not self.has_mlm_head:
            asked = replace(asked, positions=None)
        beside = {name.removeprefix("teacher_"): batch[name] for name in batch if name.startswith("teacher_")}
        if beside:
            asked = Request(after_dropout=asked.after_dropout, pooling=asked.pooling)
        if self.model.training is not asked.after_dropout:  # which goes through all of its modules
            self.model.train(asked.after_dropout)
        half = self.model.dtype in (torch.float16, torch.bfloat16)
        # Weights that were cast once need no casting by autocast in every step.
        with torch.autocast(self.model.device.type, enabled=False) if half else contextlib.nullcontext():
            view = view_encoder(self.model, beside or batch, asked)
        for layer, states in view.hidden_states.items() if beside else ():
            found = means(states.flatten(0, 1), beside["indices"], beside["offsets"])
            view.hidden_states[layer] = found.view(*batch["input_ids"].shape, -1)
        return view


def _trial(model: PreTrainedModel, length: int) -> dict[str, Tensor]:
    """Return an input of some tokens, the last quarter of them padding."""
    ids = torch.arange(7, 7 + length, device=model.device) % word_rows(model)
    mask = (torch.arange(length, device=model.device) < length - length // 4).long()
    return {"input_ids": ids[None], "attention_mask": mask[None]}


@torch.no_grad()
def try_out(
    model: PreTrainedModel, called: str, length: int = 8, request: Request | None = None
) -> EncoderView:
    """Return what a model says of an input of some tokens, or a UserError where it says nothing, or NaN."""
    broken = [key for key, weight in model.named_parameters() if not weight.isfinite().all()]
    if broken:
        raise UserError(
            f"{called}: its weights hold NaN or infinity ({listed(broken[:4])}): get the model anew, or train it again"
        )
    if getattr(model.base_model, "attention_type", None) == "block_sparse":
        model = copy.deepcopy(model)  # BigBird changes for good at its first short input
    try:
        with evaluating(model):
            batch = _trial(model, min(length, max_input_length(model)))
            view = view_encoder(model, batch, request)
    except LOADING_ERRORS as error:
        raise UserError(
            f"{called} cannot read an input of {length} tokens ({type(error).__name__}: {one_line(error)}): give "
            "another encoder"
        ) from error
    valid = batch["attention_mask"].bool()
    for layer, states in view.hidden_states.items():
        if states.shape[:2] == valid.shape and not states[valid].isfinite().all():
            raise UserError(
                f"{called} gives NaN or infinity from layer {layer} on: its weights are damaged, or too large"
            )
    return view


def _attention_fault(view: EncoderView, length: int) -> str:
    """Return why the maps of a view are not rows of probabilities over the tokens of `_trial`; "" where they are."""
    rows = {
        layer: rows.exp() if view.log_rows else rows
        for layer, rows in view.attention_rows.items()
        if rows is not None
    }
    if set(rows) != set(range(1, len(view.hidden_states))):
        return "layers show no map"
    heads = {row.shape[1] for row in rows.values()}
    queries = length - length // 4
    for layer, row in rows.items():
        if row.shape != (1, row.shape[1], length, length) or len(heads) > 1:
            return f"layer {layer} has a map of shape {tuple(row.shape[1:])}, not heads x tokens x tokens"
        text = row[0, :, :queries].float()
        sums = text.sum(-1)
        if not (text >= 0).all() or (sums - 1).abs().max() > 1e-2:
            least, most, lowest = (value.item() for value in (sums.min(), sums.max(), text.min()))
            return (
                f"layer {layer} has rows that sum to {least:.3g} to {most:.3g}, and values from {lowest:.3g}"
            )
        if text[:, :, queries:].sum() > 1e-2:
            return f"layer {layer} has a map that looks at padding"
    return ""


def max_input_length(model: PreTrainedModel) -> int:
    """Return the longest input of an encoder in tokens, without the rows reserved for padding.

    Where no table of positions limits it (Funnel) it is 512.
    """
    return config_value(model.config, "max_position_embeddings", default=512) - position_offset(model)


def config_value(config: PreTrainedConfig, *names: str, default: Any = None) -> Any:
    """Return the first of some fields that a configuration has a value for; families name them differently."""
    return next((value for name in names if (value := getattr(config, name, None)) is not None), default)


def position_offset(model: PreTrainedModel) -> int:
    """Return the row of the position table that the first token uses: 0; padding id + 1 in RoBERTa's kin."""
    embeddings = getattr(model.base_model, "embeddings", None)
    table = getattr(embeddings, "position_embeddings", None)
    padding = getattr(table, "padding_idx", None)
    return 0 if padding is None else int(padding) + 1
