"""Sentence vectors: how an encoder's token states become one vector of a text, and what a student's are trained for.

`R` rows of `T` tokens hold `B` texts; `D` is the encoder's width, `V` that of a vector.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from minialbert.errors import UserError, failing_as, listed, quoted
from minialbert.method.losses import at_least_one
from minialbert.runs.files import write_json

logger = logging.getLogger(__name__)

PoolingMode = Literal["mean", "cls", "max", "mean_sqrt_len_tokens"]
_Find = Callable[[str], Path | None]  # gives a file of a model by its name, or None where it has none
MODULES_FILE, PROMPTS_FILE, LENGTH_FILE = (
    "modules.json", "config_sentence_transformers.json", "sentence_bert_config.json",
)  # fmt: skip
_POOLING, _NORMALIZE = "1_Pooling", "Normalize"
_ORDER = re.compile(r"Transformer Pooling( Dense)*( Normalize)*")
# Settings of a module that make it another one, and what they are where they do not.
_PLAIN = {
    "module_input_name": "sentence_embedding", "module_output_name": "sentence_embedding", "use_residual": False,
    "include_prompt": True,
}  # fmt: skip
_ENDLESS = 10**9  # a tokenizer's length from which on it has none
STAND_IN_FILE = "config_onnx.json"
SENTENCE_FILES = (MODULES_FILE, LENGTH_FILE, PROMPTS_FILE, f"{_POOLING}/config.json")
_FLAGS: dict[str, PoolingMode] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
}
_ACTIVATIONS = ("Identity", "Tanh", "ReLU", "GELU", "Sigmoid")  # of torch.nn


@dataclass(frozen=True, eq=False)
class Dense:
    """A linear map after pooling: activation(x W^T + b), with W (V, D) and b (V,) or None."""

    weight: Tensor
    bias: Tensor | None = None
    activation: str = "Identity"

    def __call__(self, vectors: Tensor) -> Tensor:
        """Return the mapped vectors, (B, V)."""
        weight = self.weight.to(vectors)
        bias = None if self.bias is None else self.bias.to(vectors)
        mapped: Tensor = getattr(nn, self.activation)()(functional.linear(vectors, weight, bias))
        return mapped


@dataclass(frozen=True, eq=False)
class Pooling:
    """How the token states of a text become its vector; what a sentence-transformers folder says in its modules.

    Args:
        mode: the mean over tokens, the first token, the largest value of each dimension, or the sum over tokens
            divided by the root of their number.
        dense: linear maps after it, in order.
        normalize: whether vectors have length one in the end.
        prompts: texts to put before an input, by name.
        max_tokens: at which an input is cut; None for as many as the encoder takes.
    """

    mode: PoolingMode = "mean"
    dense: tuple[Dense, ...] = ()
    normalize: bool = True
    prompts: Mapping[str, str] = field(default_factory=dict)
    max_tokens: int | None = None

    def __call__(self, states: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """Return one vector for each text of a batch, (B, V) in fp32, from states (R, T, D).

        Rows may hold several texts (`PackedCollator`): they come row by row, in the order in which they lie there.
        """
        texts = batch.get("sequence_ids")
        if texts is None:
            return self.of_rows(states.float(), batch["attention_mask"])
        apart = texts + texts.shape[1] * torch.arange(len(texts), device=texts.device)[:, None]
        lengths = apart[texts >= 0].unique_consecutive(return_counts=True)[1].tolist()
        tokens = states[texts >= 0].float()
        parts, inside = (of.split(lengths) for of in (tokens, texts.new_ones(len(tokens))))
        return self.of_rows(pad_sequence(parts, batch_first=True), pad_sequence(inside, batch_first=True))

    def of_rows(self, states: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the vector of each row, (R, V), which is one text; a graph can be traced through it."""
        inside = attention_mask[..., None]
        if self.mode == "cls":
            return self._mapped(states[:, 0])
        if self.mode == "max":
            return self._mapped(states.masked_fill(inside == 0, -torch.inf).amax(dim=1))
        counts = inside.sum(dim=1).to(states.dtype)
        # A product, since ONNX Runtime adds up the tokens of one text in another order than those of several.
        sums = (inside.to(states.dtype).mT @ states).squeeze(1)
        return self._mapped(sums / (counts if self.mode == "mean" else counts.sqrt()))

    def _mapped(self, vectors: Tensor) -> Tensor:
        for dense in self.dense:
            vectors = dense(vectors)
        return functional.normalize(vectors, dim=-1) if self.normalize else vectors

    def width(self, hidden_size: int, name: str) -> int:
        """Return V, for states of some width; a linear map that does not fit to what comes before it is a UserError."""
        for dense in self.dense:
            if dense.weight.ndim != 2 or dense.weight.shape[1] != hidden_size:
                raise UserError(
                    f"{name}: a linear map after pooling takes {tuple(dense.weight.shape)[1:]} values, and "
                    f"{hidden_size} come: its modules belong to different models"
                )
            hidden_size = dense.weight.shape[0]
        return hidden_size

    def projected(self, weight: Tensor) -> Pooling:
        """Return the pooling of a student whose states a projection, (D', D), takes to its teacher's width."""
        return replace(self, dense=(Dense(weight.detach().cpu().float()), *self.dense))


@dataclass(frozen=True)
class VectorObjective:
    """What a student's vectors s are trained for, beside the vectors t of its teacher for the same texts.

    With c(a, b) the cosine, and b, c, d texts of one forward pass:

    L_vec = vector_weight * mean_b (1 - c(s_b, t_b))
        + similarity_weight * mean_{b != c} (c(s_b, s_c) - c(t_b, t_c))^2
        + triplet_weight * mean_{b, d} max(0, (c(t_b, t_p) - c(t_b, t_d)) - (c(s_b, s_p) - c(s_b, s_d)))

    where p is the text of the pass that is nearest to b by the teacher: a student keeps each margin that its teacher
    has. Texts are read whole, without masks. Not in the paper.

    Args:
        vector_weight: of the distance between the vectors of a text.
        similarity_weight: of the distance between the similarities of two texts.
        triplet_weight: of lost margins.
        dims: leading dimensions at which the terms count too, as Matryoshka vectors are used; means over all.
        pooling: how states become vectors, the teacher's; None until a teacher is known.
    """

    vector_weight: float = 20.0
    similarity_weight: float = 100.0
    triplet_weight: float = 0.0
    dims: tuple[int, ...] = ()
    pooling: Pooling | None = None

    @property
    def weights(self) -> dict[str, float]:
        """Weights by the name of the term, without those that are 0."""
        terms = ("vector", "similarity", "triplet")
        return {name: weight for name in terms if (weight := getattr(self, f"{name}_weight"))}

    def to_dict(self) -> dict[str, Any]:
        """Return what sets it apart as plain data, under the names of a recipe."""
        values: dict[str, Any] = {f"{name}_weight": weight for name, weight in self.weights.items()}
        return values | ({"vector_dims": list(self.dims)} if self.dims else {})

    def __call__(self, student: Tensor, teacher: Tensor, *, count: Tensor | float) -> dict[str, Tensor]:
        """Return the terms by name, without their weights, with gradients towards the student's vectors only.

        Both are (B, V). A mean over the texts of this pass counts by their share of `count`, the texts of the whole
        optimiser step, so that its passes add up.
        """
        teacher = teacher.detach()
        sizes = (*self.dims, student.shape[-1])
        share = len(student) / at_least_one(count)
        sums: dict[str, Tensor] = {}
        for size in sizes:
            ours, theirs = (functional.normalize(v[:, :size].float(), dim=-1) for v in (student, teacher))
            for name, value in self._terms(ours, theirs).items():
                sums[name] = sums.get(name, 0) + value * share / len(sizes)
        return sums

    def _terms(self, ours: Tensor, theirs: Tensor) -> dict[str, Tensor]:
        terms, weights = {"vector": (1 - (ours * theirs).sum(-1)).mean()}, self.weights
        others = ~torch.eye(len(ours), dtype=torch.bool, device=ours.device)
        if len(ours) < 2:  # a text alone has no similarities
            return terms | {name: ours.sum() * 0 for name in weights if name != "vector"}
        near, target = ours @ ours.T, theirs @ theirs.T
        if "similarity" in weights:
            terms["similarity"] = (near - target)[others].square().mean()
        if "triplet" in weights:
            best = target.masked_fill(~others, -torch.inf).argmax(1, keepdim=True)
            lost = (target.gather(1, best) - target) - (near.gather(1, best) - near)
            terms["triplet"] = lost[others].clamp(min=0).mean()
        return terms


def similarity_correlation(vectors: Tensor, reference: Tensor) -> float:
    """Return Spearman's correlation between the pairwise cosines of two sets of vectors, (B, V) each; B >= 3."""
    pairs, ranks = torch.triu_indices(len(vectors), len(vectors), offset=1), []
    for one in (vectors, reference):
        unit = functional.normalize(one.double(), dim=-1)
        _, place, counts = (unit @ unit.T)[*pairs].unique(return_inverse=True, return_counts=True)
        # Equal similarities share the mean of their ranks; all are half a place too high, which no correlation sees.
        ranks.append((counts.cumsum(0) - counts.double() / 2)[place])
    return float(torch.corrcoef(torch.stack(ranks))[0, 1])


def read_pooling(name: str, find: _Find) -> Pooling:
    """Return how a sentence-transformers model pools; the mean of its tokens, as it is, where it has no modules.

    Raises UserError for modules that have no place here, and files that cannot be read.
    """
    if (file := find(MODULES_FILE)) is None:
        return Pooling(normalize=False)
    modules = _read(file, list)
    if not all(isinstance(module, dict) for module in modules):
        raise UserError(f"{file} should list its modules as objects, found {quoted(modules)}")
    places = [str(module.get("path", "")) for module in modules]
    if outside := [place for place in places if Path(place).is_absolute() or ".." in Path(place).parts]:
        raise UserError(f"{file} names a folder outside of the model: {quoted(outside[0])}")
    types = [str(module.get("type", "")) for module in modules]
    # Others are code of the model's own, which is never run.
    kinds = [one.rsplit(".", 1)[-1] if one.startswith("sentence_transformers.") else one for one in types]
    if not _ORDER.fullmatch(" ".join(kinds)):
        raise UserError(
            f"{name} has the modules {listed(kinds)}, and a sentence encoder is read with Transformer, "
            "Pooling, Dense and Normalize alone, in this order: give another teacher"
        )
    steps = list(zip(kinds, places, strict=True))[1:]  # after the Transformer
    settings = {place: _settings(find, kind, place, name) for kind, place in steps}
    of_transformer = (str(Path(places[0], file)) for file in (LENGTH_FILE, "tokenizer_config.json"))
    said, length, tokenizer = (_read(find(file), dict) for file in (PROMPTS_FILE, *of_transformer))
    known, longest = said.get("prompts"), length.get("max_seq_length") or tokenizer.get("model_max_length")
    prompts = {str(key): str(text) for key, text in known.items() if text} if isinstance(known, dict) else {}
    for key, option in (("default_prompt_name", "--prompt"), ("truncate_dim", "--dim")):
        if (value := said.get(key)) is not None and (key == "truncate_dim" or value in prompts):
            logger.warning(
                "%s: its %s %s is not applied by itself: `embed %s %s` does", name, key, value, option, value
            )
    return Pooling(
        mode=_mode(f"{name}/{places[1]}/config.json", settings[places[1]]),
        dense=tuple(
            _read_dense(find, place, name, settings[place]) for kind, place in steps if kind == "Dense"
        ),
        normalize=kinds[-1] == _NORMALIZE,
        prompts=prompts,
        max_tokens=longest if isinstance(longest, int) and 0 < longest < _ENDLESS else None,
    )


def _settings(find: _Find, kind: str, place: str, name: str) -> dict[str, Any]:
    """Return what a module's file says, where it needs one; refuse what is not done here."""
    place = f"{place}/config.json"
    file = find(place) if kind == _NORMALIZE else _needed(find, name, place)
    settings: dict[str, Any] = _read(file, dict)
    for key, plain in _PLAIN.items():
        if settings.get(key) not in (None, plain):
            raise UserError(
                f"{file}: {key} is {quoted(settings[key])}, and only {quoted(plain)} is read: give another teacher"
            )
    return settings


def _needed(find: _Find, name: str, *places: str) -> Path:
    """Return the first of a model's files that it has; one it must have."""
    if (file := next(filter(None, map(find, places)), None)) is None:
        raise UserError(f"{name} has no {places[0]}, which its {MODULES_FILE} names: get the model anew")
    return file


def _read(file: Path | None, kind: type) -> Any:
    """Return what a file says; nothing where there is none."""
    if file is None:
        return kind()
    with failing_as(
        f"{file} cannot be read as JSON", (OSError, ValueError, RecursionError), "get the model anew"
    ):
        values = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(values, kind):
        raise UserError(f"{file} should hold a JSON {kind.__name__}, found {type(values).__name__}")
    return values


def _mode(file: str, values: Mapping[str, Any]) -> PoolingMode:
    """Return the mode that a pooling's config names: by a word, or in older files by flags."""
    named, known = values.get("pooling_mode"), get_args(PoolingMode)
    flags = [_FLAGS.get(key, key) for key, flag in values.items() if key.startswith("pooling_mode_") and flag]
    modes: list[Any] = flags or ["mean"] if named is None else named if isinstance(named, list) else [named]
    if len(modes) != 1 or modes[0] not in known:
        raise UserError(f"{file}: expected one pooling mode of {listed(known)}, found {listed(modes)}")
    mode: PoolingMode = modes[0]
    return mode


def _read_dense(find: _Find, place: str, name: str, settings: Mapping[str, Any]) -> Dense:
    activation = str(settings.get("activation_function", "Tanh")).rsplit(".", 1)[-1]
    if activation not in _ACTIVATIONS:
        raise UserError(
            f"{name}/{place}: the activation {quoted(activation)} is not one of {listed(_ACTIVATIONS)}"
        )
    weights = _needed(find, name, f"{place}/model.safetensors", f"{place}/pytorch_model.bin")
    of_pickle = partial(torch.load, map_location="cpu", weights_only=True)
    with failing_as(f"{weights} has no readable weights of a linear map", Exception):
        tensors = (load_file if weights.suffix == ".safetensors" else of_pickle)(weights)
        return Dense(tensors["linear.weight"], tensors.get("linear.bias"), activation)


def write_pooling(
    folder: Path, pooling: Pooling, *, width: int, max_tokens: int, stand_in: Mapping[str, Any] | None = None
) -> list[str]:
    """Write what makes an encoder's folder a model for sentence-transformers, and return the names of the files.

    They are in the layout of sentence-transformers 2, which every later version reads. `width` is that of the encoder's
    states; texts are cut after `max_tokens`, or sooner where the pooling says so. `stand_in` is the config that it
    reads in place of the folder's, whose architecture Transformers may not know: who runs a graph needs its sizes.
    """
    kinds = ["Transformer", "Pooling", *["Dense"] * len(pooling.dense), *[_NORMALIZE] * pooling.normalize]
    places = ["", *(f"{index}_{kind}" for index, kind in enumerate(kinds[1:], 1))]
    contents: dict[str, Any] = {
        MODULES_FILE: [
            {"idx": index, "name": str(index), "path": place, "type": f"sentence_transformers.models.{kind}"}
            for index, (kind, place) in enumerate(zip(kinds, places, strict=True))
        ],
        LENGTH_FILE: {"max_seq_length": min(pooling.max_tokens or max_tokens, max_tokens), "do_lower_case": False},
        PROMPTS_FILE: {
            "prompts": dict(pooling.prompts), "default_prompt_name": None, "similarity_fn_name": "cosine",
        },
        f"{_POOLING}/config.json": {
            "word_embedding_dimension": width,
            **{flag: mode == pooling.mode for flag, mode in _FLAGS.items()},
        },
    }  # fmt: skip
    if stand_in is not None:
        contents[STAND_IN_FILE], named = dict(stand_in), {"_configuration_file": STAND_IN_FILE}
        contents[LENGTH_FILE] |= {"config_args": named, "tokenizer_args": named}
    places_of_maps = places[2 : 2 + len(pooling.dense)]
    for dense, place in zip(pooling.dense, places_of_maps, strict=True):
        contents[f"{place}/config.json"] = {
            "in_features": dense.weight.shape[1], "out_features": dense.weight.shape[0],
            "bias": dense.bias is not None,
            "activation_function": f"{getattr(nn, dense.activation).__module__}.{dense.activation}",
        }  # fmt: skip
        tensors = {"linear.weight": dense.weight.contiguous()}
        if dense.bias is not None:
            tensors["linear.bias"] = dense.bias
        (folder / place).mkdir(exist_ok=True)
        save_file(tensors, folder / place / "model.safetensors")
    for file, content in contents.items():
        (folder / file).parent.mkdir(exist_ok=True)
        write_json(folder / file, content)
    return [*contents, *(f"{place}/model.safetensors" for place in places_of_maps)]
