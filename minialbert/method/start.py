"""A student that starts from its teacher, or from a donor's embeddings, instead of from noise.

All functions work on a constructed model and write into its parameters, so that nothing initialises them
again afterwards. (The released code hands donor embeddings to a constructor that then re-initialises them.)
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from minialbert.data.pairs import compared
from minialbert.errors import UserError, display_name, one_line
from minialbert.method.configuration_minialbert import MiniAlbertConfig
from minialbert.method.encoders import (
    Teacher,
    config_value,
    evaluating,
    load_encoder,
    load_encoder_config,
    position_offset,
)
from minialbert.method.losses import layer_map
from minialbert.method.modeling_minialbert import (
    LowRankAdapter,
    MiniAlbertForMaskedLM,
    VectorAdapter,
    known_kinds,
)
from minialbert.recipes.schema import SHARING_DEFAULTS, StudentRecipe

# Names of one layer's parts, by family, in the order of ours (the first line).
_BLOCK_PARTS = (
    ("attention.query", "attention.key", "attention.value", "attention.dense", "attention.LayerNorm",
     "ffn", "ffn_output", "LayerNorm"),
    # BERT, RoBERTa, ELECTRA
    ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense",
     "attention.output.LayerNorm", "intermediate.dense", "output.dense", "output.LayerNorm"),
    ("attention.attn.q", "attention.attn.k", "attention.attn.v", "attention.attn.o", "attention.LayerNorm",
     "intermediate.dense", "output.dense", "output.LayerNorm"),  # MPNet
    ("attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin", "sa_layer_norm",
     "ffn.lin1", "ffn.lin2", "output_layer_norm"),  # DistilBERT
    ("attention.query", "attention.key", "attention.value", "attention.dense", "attention.LayerNorm",
     "ffn", "ffn_output", "full_layer_layer_norm"),  # ALBERT
)  # fmt: skip
_SMALL_GAIN = 1e-3  # of a LayerNorm; below it no factor leads to another's
_LAYER_LISTS = ("encoder.layer", "transformer.layer", "encoder.albert_layer_groups.0.albert_layers")
# Dense, LayerNorm and vocabulary bias of a masked-LM head, by family: BERT; RoBERTa and MPNet; DistilBERT.
_HEAD_PARTS = (
    ("cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm", "cls.predictions.decoder"),
    ("lm_head.dense", "lm_head.layer_norm", "lm_head.decoder"),
    ("vocab_transform", "vocab_layer_norm", "vocab_projector"),
)
# Of a student's shape, what a recipe may leave open; and what counts in training alone.
SHAPE = (
    "num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "hidden_act",
    "max_position_embeddings",
)  # fmt: skip
_DROPOUTS = ("hidden_dropout_prob", "attention_probs_dropout_prob")
# How the weights of a BERT that have a row for each word end.
_ROWS_OF_WORDS = ("word_embeddings.weight", "predictions.bias", "decoder.weight", "decoder.bias")


@torch.no_grad()
def initialize_from_teacher(
    student: MiniAlbertForMaskedLM,
    teacher: Teacher,
    batches: Iterable[dict[str, Tensor]],
    *,
    layer: int | Literal["third"] | None = None,
    adapters: bool = False,
) -> list[str]:
    """Write a starting point taken from the teacher into a student; return per part what it starts from, or why not.

    Embedding tables: at full rank the teacher's own; below it their rows in the R - 1 directions in which the
    teacher's embedding output varies most over `batches` of real text, laid out so that the student's
    LayerNorm, which takes the mean of a row away, takes none of them. Embedding projection (Eq. 5): least
    squares from the student's rank-R vectors to the teacher's embedding output. Shared block: one of the
    teacher's layers, counted from 1, or the mean of all; several groups: the layers that their first iterations
    stand for (`layer_map`); a narrower feed-forward network: the units that move its output most. Masked-LM head:
    the teacher's; what leads to a factorised decoder is fitted to the teacher's, or to its word table where it has
    no head. Adapters stay as they are, or with `adapters` follow the teacher's layers (`_start_adapters`). Rows of
    words are those that `Teacher.words` gives. Raises UserError if their number is not the student's, or the
    teacher has no such layer.
    """
    encoder, config = student.minialbert, student.config
    tables = embedding_tables(teacher.model)
    tables["word_embeddings"] = word = teacher.words(tables["word_embeddings"])
    if word.shape[0] != config.vocab_size:
        raise UserError(
            f"the student has {config.vocab_size} word embeddings and the teacher {word.shape[0]}: a student "
            "that starts from its teacher needs the same vocabulary"
        )
    if isinstance(layer, str):  # "third"
        layer = int(teacher.num_layers + 2) // 3
    if layer is not None and not 1 <= layer <= teacher.num_layers:
        has = f"the teacher has layers 1-{teacher.num_layers}; third is always one of them"
        raise UserError(f"student.init_layer is {layer}, but {has}")
    samples = [{key: value for key, value in batch.items() if key != "labels"} for batch in batches]
    low_rank = _fit_low_rank(teacher, tables, samples, config.embedding_size)
    encoder.embeddings.token_type_embeddings.weight.zero_()  # where the teacher has none
    for name, table in tables.items():
        target = getattr(encoder.embeddings, name).weight
        rows = min(len(target), len(table))
        target[:rows] = table[:rows] if low_rank is None else table[:rows] @ low_rank.directions
        target[rows:] = 0
    if low_rank is not None:
        encoder.embeddings.token_type_embeddings.weight.sub_(low_rank.mean @ low_rank.directions)
    if config.pad_token_id is not None:
        encoder.embeddings.word_embeddings.weight[config.pad_token_id] = 0
    directions = "" if low_rank is None else f", in {config.embedding_size - 1} principal directions"
    report = [
        f"embedding tables ({', '.join(tables)}): the teacher's{directions}",
        _start_projection(student, teacher, samples, full_rank=low_rank is None),
        _start_block(student, teacher, layer, samples),
        _start_head(student, teacher, low_rank),
    ]
    if adapters and not report[2].startswith("shared block: random"):
        report.append(_start_adapters(student, teacher))
    return report


def embedding_tables(model: PreTrainedModel) -> dict[str, Tensor]:
    """Return an encoder's embedding tables under our names, without rows reserved for padding positions.

    "word_embeddings" always; "position_embeddings" and "token_type_embeddings" where the model has them.
    """
    word = model.get_input_embeddings().weight.detach()
    tables = {"word_embeddings": word}
    embeddings = getattr(model.base_model, "embeddings", None)
    for name in ("position_embeddings", "token_type_embeddings"):
        table = getattr(embeddings, name, None)
        # Of another width they are added to something else than words (MobileBERT).
        if isinstance(table, nn.Embedding) and table.embedding_dim == word.shape[1]:
            tables[name] = table.weight.detach()
    if "position_embeddings" in tables:
        tables["position_embeddings"] = tables["position_embeddings"][position_offset(model) :]
    return tables


@torch.no_grad()
def initialize_from_donor(student: MiniAlbertForMaskedLM, donor: PreTrainedModel) -> list[str]:
    """Copy a donor's embeddings (word, position, token type, LayerNorm) into a student, and say so in a line.

    The paper starts its rank-312 students from TinyBERT_General_4L_312D and TinyBioBERT. Raises UserError if rank or
    vocabulary differ.
    """
    embeddings = student.minialbert.embeddings
    tables = embedding_tables(donor)
    expected = tuple(embeddings.word_embeddings.weight.shape)
    if tuple(tables["word_embeddings"].shape) != expected:
        raise UserError(
            f"the donor's word table has shape {tuple(tables['word_embeddings'].shape)}, the student's "
            f"{expected}: take a donor of the same vocabulary, and embedding_size equal to its width"
        )
    for name, table in tables.items():
        target = getattr(embeddings, name).weight
        rows = min(len(target), len(table))
        target[:rows] = table[:rows]
    norm = _embedding_norm(donor)
    has_norm = norm is not None and _copy(norm, embeddings.LayerNorm)
    return [f"embeddings ({', '.join(tables)}{', LayerNorm' if has_norm else ''}): the donor's"]


@torch.no_grad()
def initialize_from_alternate_layers(student: BertForMaskedLM, teacher: Teacher) -> list[str]:
    """Copy embeddings, head and evenly spread layers of a BERT teacher into a shallower BERT; one line per part.

    For 12 -> 6 these are layers 0, 2, 4, 7, 9 and 11 (from zero), those of DistilBERT's own script. Raises UserError
    for another teacher, or one of another shape.
    """
    if teacher.model.config.model_type != "bert":
        raise UserError(
            "init alternate-layers copies layers of a BERT, but the teacher is a "
            f"{teacher.model.config.model_type} model; give init random"
        )
    depth, teacher_depth = student.config.num_hidden_layers, teacher.num_layers
    step = (teacher_depth - 1) / max(depth - 1, 1)
    kept = [round(index * step) for index in range(depth)]
    weights, own, renamed = teacher.model.state_dict(), student.state_dict(), {}
    for key in own:
        prefix, layer, rest = key.partition("encoder.layer.")
        number, _, part = rest.partition(".")
        value = weights.get(f"{prefix}{layer}{kept[int(number)]}.{part}" if layer else key)
        if value is not None:
            renamed[key] = teacher.words(value) if key.endswith(_ROWS_OF_WORDS) else value
    different = [key for key in own if key not in renamed or renamed[key].shape != own[key].shape]
    different = [key for key in different if teacher.has_mlm_head or not key.startswith("cls.")]
    if different:
        raise UserError(
            "init alternate-layers needs a student of the teacher's width and vocabulary; "
            f"{different[0]} differs"
        )
    student.load_state_dict(renamed, strict=False)
    student.tie_weights()
    return [
        f"layers: the teacher's {', '.join(str(layer + 1) for layer in kept)} (from 1)",
        "embeddings: the teacher's",
    ]


@dataclass(frozen=True)
class _LowRank:
    """A linear map from rows of the teacher's tables to rank R: directions (teacher's width, R).

    `mean` is the mean sum of the rows of a token, over the text; `frequency` (V,) how often it has each word,
    plus one.
    """

    directions: Tensor
    mean: Tensor
    frequency: Tensor


def _fit_low_rank(
    teacher: Teacher, tables: dict[str, Tensor], samples: Sequence[dict[str, Tensor]], rank: int
) -> _LowRank | None:
    """Return what keeps most of the teacher's embedding output as text has it, or None at full rank.

    Not a singular value decomposition of the word table: of what a teacher's layers read from its embeddings,
    that keeps little (docs/method.md has the figures).
    """
    word = tables["word_embeddings"]
    width = word.shape[1]
    if rank == width:
        return None
    norm = _embedding_norm(teacher.model)
    gain = norm.weight.double().cpu() if norm is not None and norm.normalized_shape == (width,) else None
    frequency = torch.ones(len(word), dtype=torch.float64)
    count, total = 0, torch.zeros(width, dtype=torch.float64)
    output_total, gram = torch.zeros_like(total), torch.zeros(width, width, dtype=torch.float64)
    for ids, rows in _token_rows(tables, samples):
        frequency += torch.bincount(ids, minlength=len(word))
        output = rows if gain is None else nn.functional.layer_norm(rows, (width,)) * gain
        count += len(rows)
        total += rows.sum(0)
        output_total += output.sum(0)
        gram += output.T @ output
    mean_output = output_total / count
    _, vectors = torch.linalg.eigh(gram / count - torch.outer(mean_output, mean_output))  # ascending
    kept = vectors.flip(1)[:, : rank - 1]
    # Columns of a cosine transform but its first: each is orthogonal to the ones, and spreads a direction evenly.
    index = torch.arange(rank, dtype=torch.float64)
    layout = (2 / rank) ** 0.5 * torch.cos(torch.pi * (index[:, None] + 0.5) * index[None, 1:] / rank)
    directions = kept @ layout[:, : kept.shape[1]].T
    if gain is not None:
        directions = gain[:, None] * directions
        directions -= directions.mean(0)  # a row of the teacher's counts without its mean
    table = word.double().cpu()
    ours, theirs = (frequency @ rows.square().mean(1) for rows in (table @ directions, table))
    # To the student's LayerNorm rows of any length are the same, to Adam they are not.
    if ours > 0:  # as it is not at rank 1
        directions *= (theirs / ours).sqrt()
    return _LowRank(directions.to(word), (total / count).to(word), frequency)


def _embedding_norm(model: PreTrainedModel) -> nn.LayerNorm | None:
    """Return the LayerNorm that a model's table rows go through, or None where there is none."""
    norm = _part(model.base_model, "embeddings.LayerNorm")
    return norm if isinstance(norm, nn.LayerNorm) else None


def _token_rows(
    tables: dict[str, Tensor], samples: Sequence[dict[str, Tensor]]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield ids and sums of table rows of the tokens of each batch; without text, of every word once."""
    if not samples:
        word = tables["word_embeddings"].double().cpu()
        yield torch.zeros(0, dtype=torch.long), word
    for sample in samples:
        ids = sample["input_ids"]
        types = sample.get("token_type_ids", torch.zeros_like(ids))
        positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        of_table = {"word_embeddings": ids, "position_embeddings": positions, "token_type_embeddings": types}
        valid = sample["attention_mask"].bool()
        rows = [
            table[of_table[name][valid].to(table.device)].double().cpu() for name, table in tables.items()
        ]
        yield ids[valid].cpu(), torch.stack(rows).sum(0)


def _start_projection(
    student: MiniAlbertForMaskedLM, teacher: Teacher, samples: Sequence[dict[str, Tensor]], *, full_rank: bool
) -> str:
    embeddings = student.minialbert.embeddings
    if isinstance(embeddings.projection, nn.Identity):
        norm = _embedding_norm(teacher.model)
        if full_rank and norm is not None and _copy(norm, embeddings.LayerNorm):
            return "embedding LayerNorm: the teacher's (full rank, no projection)"
        return "embedding LayerNorm: one and zero"
    if teacher.hidden_size != student.config.hidden_size or not samples:
        reason = "the teacher has another width" if samples else "no text to fit it on"
        return f"embedding projection: random ({reason})"
    seen: list[Tensor] = []  # the LayerNorm's output is what the projection sees; dropout is off
    handle = embeddings.projection.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    inputs, targets = [], []
    with evaluating(student):
        for sample in samples:
            valid = compared(sample).bool()
            embeddings(sample["input_ids"], sample.get("token_type_ids"), None, None)
            inputs.append(seen.pop()[valid].double())
            targets.append(teacher.view(sample).hidden_states[0][valid].double())
    handle.remove()
    x, y = torch.cat(inputs), torch.cat(targets)
    solution = _least_squares(x, y)
    embeddings.projection.weight.copy_(solution[:-1].T)
    embeddings.projection.bias.copy_(solution[-1])
    cosine = nn.functional.cosine_similarity(x @ solution[:-1] + solution[-1], y, dim=-1).mean().item()
    return (
        f"embedding projection: least squares on {len(x):,} tokens "
        f"(cosine to the teacher's output {cosine:.3f})"
    )


def _least_squares(x: Tensor, y: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return A, (columns of x + 1, columns of y), its last row the intercept, that brings x A nearest to y."""
    x, y = x.double(), y.double()
    x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
    weighted = x if weights is None else x * weights[:, None].to(x)
    gram = weighted.T @ x
    gram += 1e-6 * gram.diagonal().mean() * torch.eye(len(gram), dtype=x.dtype, device=x.device)
    return torch.linalg.solve(gram, weighted.T @ y)


def _start_block(
    student: MiniAlbertForMaskedLM, teacher: Teacher, layer: int | None, samples: Sequence[dict[str, Tensor]]
) -> str:
    layers, kind = _teacher_layers(teacher.model), teacher.model.config.model_type
    if layers is None:
        return f"shared block: random (the layers of {kind} have another structure)"
    parts, modules = layers
    block, config = student.minialbert.block, student.config
    sources: dict[str, list[Any]] = {
        ours: [module.get_submodule(name) for module in modules]
        for ours, name in zip(_BLOCK_PARTS[0], parts, strict=True)
    }
    starts = [layer] * config.num_hidden_groups
    if layer is None and len(starts) > 1:
        starts = _group_layers(config, teacher.num_layers)
    network: list[list[Any]] = []  # of which a narrower one keeps some units
    if config.intermediate_size < len(sources["ffn"][0].weight) and None not in starts and samples:
        network = [sources.pop("ffn"), sources.pop("ffn_output")]
    if any(not _fits(part, block.get_submodule(name)) for name, source in sources.items() for part in source):
        return "shared block: random (width or inner width differ from the teacher's)"
    if config.num_attention_heads != teacher.num_heads:
        return "shared block: random (head counts differ)"
    told = ""
    for block, start in zip(student.minialbert.blocks, starts, strict=True):
        # A teacher of one shared block (ALBERT) has one module for all of its layers.
        chosen = slice(None) if start is None or len(modules) == 1 else slice(start - 1, start)
        for name, source in sources.items():
            _copy_mean(source[chosen], _part(block, name))
        if network:
            told = _start_narrower(block, [it[chosen][0] for it in network], start or 1, teacher, samples)
    if len(starts) > 1:
        return f"{len(starts)} groups: the teacher's layers {', '.join(map(str, starts))}{told}"
    if layer is not None:
        return f"shared block: the teacher's layer {layer}{told}"
    return f"shared block: mean of the teacher's {len(modules)} layers"


def _copy_mean(sources: Sequence[Any], target: Any) -> None:
    """Copy the mean of weights and biases; a target of None is the attention of another group's block."""
    if target is not None:
        target.weight.copy_(torch.stack([module.weight for module in sources]).mean(0))
        if sources[0].bias is not None:
            target.bias.copy_(torch.stack([module.bias for module in sources]).mean(0))


def _start_narrower(
    block: Any, network: Sequence[Any], layer: int, teacher: Teacher, samples: Sequence[dict[str, Tensor]]
) -> str:
    """Give a narrower feed-forward network the units of a teacher's that move its output most on text."""
    inner, outer = network
    seen: list[Tensor] = []
    handle = outer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    rows = []
    for sample in samples:
        teacher.view(sample)
        states = seen[min(layer, len(seen)) - 1]  # one module may be applied in all layers
        rows.append(states[sample.get("teacher_attention_mask", sample["attention_mask"]).bool()])
        seen.clear()
    handle.remove()
    size = len(block.ffn.weight)
    kept, solution = fewer_units(torch.cat(rows), outer.weight, size)
    block.ffn.weight.copy_(inner.weight[kept])
    block.ffn.bias.copy_(0 if inner.bias is None else inner.bias[kept])
    block.ffn_output.weight.copy_(solution[:-1].T)
    block.ffn_output.bias.copy_(solution[-1] + (0 if outer.bias is None else outer.bias))
    return f", {size} of the {len(inner.weight):,} units of its feed-forward network"


def fewer_units(units: Tensor, outer: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return which units of a feed-forward network move its output most, and the way out of these.

    `units` (N, I) are their values on text, `outer` (H, I) is the weight of their way out; the result has indices
    (size,) in order, and a matrix (size + 1, H), its last row for the bias, fitted to the whole by least squares.
    A unit counts by its mean square times that of its way out.
    """
    units, outer = units.double(), outer.double()
    weight = units.square().mean(0) * outer.square().sum(0)
    kept = weight.topk(size).indices.sort().values
    return kept, _least_squares(units[:, kept], nn.functional.linear(units, outer))


def _group_layers(config: MiniAlbertConfig, teacher_layers: int) -> list[int | None]:
    """Return the teacher's layer, from 1, that the first iteration of each group stands for."""
    stands_for = layer_map(config.num_hidden_layers, teacher_layers)
    groups = [config.group_of(iteration) for iteration in range(config.num_hidden_layers)]
    return [stands_for[groups.index(group)] for group in range(config.num_hidden_groups)]


def _start_adapters(student: MiniAlbertForMaskedLM, teacher: Teacher) -> str:
    """Give each iteration what its teacher layer differs by from its block, as far as kinds can; return a line on it.

    A "lora" takes the closest matrices of its rank, a "layer-norm" gains and biases. Other kinds stay as they are.
    """
    config, encoder, layers = student.config, student.minialbert, _teacher_layers(teacher.model)
    assert layers is not None
    parts, modules = layers
    changed = 0
    for iteration, number in enumerate(layer_map(config.num_hidden_layers, teacher.num_layers)):
        layer, block = modules[min(number, len(modules)) - 1], encoder.blocks[config.group_of(iteration)]
        of_attention, of_network = encoder.attention_adapters[iteration], encoder.ffn_adapters[iteration]
        for ours, theirs in zip(_BLOCK_PARTS[0], parts, strict=True):
            name, in_attention = ours.rpartition(".")[2], ours.startswith("attention.")
            target, source = _part(block, ours) or _part(encoder.block, ours), _part(layer, theirs)
            for adapter in (of_attention if in_attention else of_network).modules():
                changed += _follow(adapter, name, target, source)
    told = f"{changed} parts from what the teacher's layers differ by" if changed else "identity"
    return f"adapters: {told}"


def _follow(adapter: nn.Module, name: str, ours: Any, theirs: Any) -> bool:
    """Let a part of an adapter make our layer of that name as theirs, and return whether it can."""
    if isinstance(adapter, LowRankAdapter) and name in adapter.up and _fits(theirs, ours):
        left, sizes, right = torch.linalg.svd(theirs.weight - ours.weight, full_matrices=False)
        up, down = _part(adapter.up, name), _part(adapter.down, name)
        root, rank = sizes.sqrt(), len(down.weight)
        up.weight.copy_((left * root)[:, :rank])
        down.weight.copy_((root[:, None] * right)[:rank])
        return True
    vectors = _part(adapter, f"vectors.{name}") if isinstance(adapter, VectorAdapter) else None
    if vectors is None or vectors.shift is None or not _fits(theirs, ours):
        return False
    gain = torch.ones(())
    if vectors.scale is not None:  # of a LayerNorm
        gain = torch.where(ours.weight.abs() > _SMALL_GAIN, theirs.weight / ours.weight, 1.0)
        vectors.scale.copy_(gain - 1)
    vectors.shift.copy_((0 if theirs.bias is None else theirs.bias) - gain.to(ours.bias) * ours.bias)
    return True


def _teacher_layers(model: PreTrainedModel) -> tuple[tuple[str, ...], list[nn.Module]] | None:
    for path in _LAYER_LISTS:
        found: Any = _part(model.base_model, path)
        for parts in _BLOCK_PARTS[1:] if found is not None else ():
            if all(hasattr(_part(found[0], name), "weight") for name in parts):
                return parts, list(found)
    return None


def _start_head(student: MiniAlbertForMaskedLM, teacher: Teacher, low_rank: _LowRank | None) -> str:
    head, fitted_to = student.mlm_head, ""
    if low_rank is not None and isinstance(head.projection, nn.Linear):
        # The decoder is the word table: what is left to choose is how the head meets it.
        output = teacher.model.get_output_embeddings() if teacher.has_mlm_head else None
        target = teacher.words((output or teacher.model.get_input_embeddings()).weight)
        if target.shape == (student.config.vocab_size, student.config.hidden_size):
            fitted = _least_squares(head.decoder.weight, target, low_rank.frequency)
            head.projection.weight.copy_(fitted[:-1])
            fitted_to = ", but for the way to its decoder, fitted to the word table"
    if not teacher.has_mlm_head:
        return f"masked-LM head: random{fitted_to} (the teacher has none)"
    for dense, norm, decoder in _HEAD_PARTS:
        parts = [_part(teacher.model, path) for path in (dense, norm, decoder)]
        if any(part is None for part in parts):
            continue
        source, source_norm, teacher_decoder = parts
        own_decoder = head.decoder if not student.config.tie_word_embeddings else None
        weight = teacher.words(teacher_decoder.weight)
        has_room = own_decoder is None or weight.shape == own_decoder.weight.shape
        if not (has_room and _fits(source, head.dense) and _fits(source_norm, head.LayerNorm)):
            return "masked-LM head: random (width differs from the teacher's)"
        _copy(source, head.dense)
        _copy(source_norm, head.LayerNorm)
        if own_decoder is not None:
            own_decoder.weight.copy_(weight)
        bias = None if teacher_decoder.bias is None else teacher.words(teacher_decoder.bias)
        if bias is not None and bias.shape == head.decoder.bias.shape:
            head.decoder.bias.copy_(bias)
        return "masked-LM head: the teacher's"
    return f"masked-LM head: random (the head of {teacher.model.config.model_type} has another structure)"


def _part(module: nn.Module, path: str) -> Any:
    """Return a part of a module by its path, or None."""
    try:
        return module.get_submodule(path)
    except AttributeError:
        return None


def _fits(source: Any, target: Any) -> bool:
    return bool(source.weight.shape == target.weight.shape)


def _copy(source: Any, target: Any) -> bool:
    """Copy weight and bias, which starts at zero where the source has none; return whether they fit."""
    if not _fits(source, target):
        return False
    target.weight.copy_(source.weight)
    target.bias.zero_() if source.bias is None else target.bias.copy_(source.bias)
    return True


def build_student(
    recipe: StudentRecipe,
    teacher: Teacher | None,
    tokenizer: PreTrainedTokenizerBase,
    batches: Iterable[dict[str, Tensor]],
    *,
    seed: int,
) -> tuple[PreTrainedModel, list[str]]:
    """Return a student in train mode with its first weights, and one line per part on where they come from.

    Shapes that the recipe leaves open are the teacher's, or BERT-base's. A few batches of real text are used
    by `init: teacher`. Raises UserError if the recipe asks for what cannot be had.
    """
    torch.manual_seed(seed)
    if recipe.init == "checkpoint":
        return _from_checkpoint(recipe, tokenizer)
    config = student_config(recipe, teacher, tokenizer)
    if isinstance(config, BertConfig):
        student: PreTrainedModel = BertForMaskedLM(config)
        if recipe.init == "alternate-layers":
            return student.train(), initialize_from_alternate_layers(student, _required(teacher, recipe.init))
        if recipe.init != "random":
            raise UserError(
                f"student.init {recipe.init!r} is for recursive students; arch bert starts 'random', from "
                "'alternate-layers' or from a 'checkpoint'"
            )
        return student.train(), ["all weights: random"]
    student = MiniAlbertForMaskedLM(config)
    if recipe.init == "teacher":
        report = initialize_from_teacher(
            student,
            _required(teacher, recipe.init),
            batches,
            layer=recipe.init_layer,
            adapters=recipe.adapter_init == "teacher" and len(student.minialbert.attention_adapters) > 0,
        )
    elif recipe.init == "donor":
        donor = load_encoder(str(recipe.init_from), "features", role="donor").model
        report = initialize_from_donor(student, donor)
    else:
        report = ["all weights: random"]
    return student.train(), report


def student_config(
    recipe: StudentRecipe, teacher: Teacher | None, tokenizer: PreTrainedTokenizerBase
) -> PreTrainedConfig:
    """Return the configuration of a student; what the recipe leaves open is the teacher's, or BERT-base's.

    The tokenizer gives the padding id, and the vocabulary size when no teacher does. Raises UserError if the shapes
    contradict each other.
    """
    source = teacher.model.config if teacher is not None else BertConfig()
    width = teacher.hidden_size if teacher is not None else source.hidden_size
    hidden_size = recipe.hidden_size or width
    vocabulary = teacher.translation or teacher.model.get_input_embeddings().weight if teacher else tokenizer
    shape = {
        "vocab_size": len(vocabulary),
        "hidden_size": hidden_size,
        "num_hidden_layers": recipe.num_hidden_layers,
        "num_attention_heads": recipe.num_attention_heads
        or (teacher.num_heads if teacher else source.num_attention_heads),
        "intermediate_size": recipe.intermediate_size
        or config_value(source, "intermediate_size", "hidden_dim", default=4 * width),
        "hidden_act": recipe.hidden_act
        or config_value(source, "hidden_act", "activation", "hidden_activation", default="gelu"),
        "max_position_embeddings": recipe.max_position_embeddings or (teacher.max_length if teacher else 512),
        "type_vocab_size": max(getattr(source, "type_vocab_size", 0) or 0, 1),
        "layer_norm_eps": config_value(source, "layer_norm_eps", "norm_eps", default=1e-12),
        "hidden_dropout_prob": recipe.hidden_dropout_prob,
        "attention_probs_dropout_prob": recipe.attention_probs_dropout_prob,
        "pad_token_id": tokenizer.pad_token_id,
    }
    try:
        if recipe.arch == "bert":
            return BertConfig(**shape)
        known_kinds(recipe.adapter_kind)
        return MiniAlbertConfig(
            **shape,
            embedding_size=recipe.embedding_size or hidden_size,
            adapter_reduction_factor=recipe.adapter_reduction_factor,
            adapter_layer_norm=recipe.adapter_layer_norm,
            adapter_init="identity" if recipe.adapter_init == "teacher" else recipe.adapter_init,
            tie_word_embeddings=recipe.mlm_head == "tied",
            **recipe.model_dump(include=set(SHARING_DEFAULTS)),
        )
    except ValueError as error:
        raise UserError(f"student: {one_line(error)}") from error


def _from_checkpoint(
    recipe: StudentRecipe, tokenizer: PreTrainedTokenizerBase
) -> tuple[PreTrainedModel, list[str]]:
    assert recipe.init_from is not None
    called = f"student {recipe.init_from}"
    config = load_encoder_config(recipe.init_from)
    for name in _DROPOUTS:
        if hasattr(config, name):
            setattr(config, name, getattr(recipe, name))
    loaded = load_encoder(recipe.init_from, config=config, role="student")
    student = loaded.model
    if config.model_type != recipe.arch:
        raise UserError(
            f"{called} is a {config.model_type} model, and the recipe asks for student.arch={recipe.arch}: give a "
            "checkpoint of that kind"
        )
    if config.vocab_size < len(tokenizer):
        raise UserError(
            f"{called} has {config.vocab_size} word embeddings, the tokenizer {len(tokenizer)} entries: take a "
            "checkpoint of the same tokenizer"
        )
    check_described(config, recipe, called)
    report = [f"all weights: checkpoint {display_name(recipe.init_from)}"]
    if not loaded.has_head:
        report.append("masked-LM head: random (the checkpoint has none)")
    return student.train(), report


def described(config: PreTrainedConfig) -> dict[str, Any]:
    """Return what a recipe says of a student that is there, by names of `StudentRecipe`."""
    names = [*SHAPE, *_DROPOUTS]
    if config.model_type != "minialbert":
        return {name: getattr(config, name) for name in names if hasattr(config, name)}
    names += ["embedding_size", "adapter_reduction_factor", *SHARING_DEFAULTS]
    if config.adapter_reduction_factor is not None:
        names += ["adapter_layer_norm", "adapter_init"]
    head = "tied" if config.tie_word_embeddings else "untied"
    return {**{name: getattr(config, name) for name in names}, "mlm_head": head}


def check_described(config: PreTrainedConfig, recipe: StudentRecipe, called: str) -> None:
    """Refuse a student that is there, and not the one that a recipe describes; a shape left open may be any."""
    asked = recipe.model_dump() | {"embedding_size": recipe.embedding_size or config.hidden_size}
    wrong = {
        name: value
        for name, value in described(config).items()
        if value != asked[name] and not (name in SHAPE and asked[name] is None)
    }
    if wrong:
        has = ", ".join(f"{name}={value}" for name, value in wrong.items())
        asks = ", ".join(str(asked[name]) for name in wrong)
        advice = " ".join(f"student.{name}={json.dumps(value)}" for name, value in wrong.items())
        raise UserError(f"{called} has {has}, the recipe asks for {asks}: set {advice}")


def _required(teacher: Teacher | None, init: str) -> Teacher:
    if teacher is None:
        raise UserError(f"student.init {init!r} needs a teacher: give --teacher, or student.init=random")
    return teacher
