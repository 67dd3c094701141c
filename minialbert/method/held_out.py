"""How well a student predicts masked tokens, and follows its teacher, on windows it has not seen."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from minialbert.data.pairs import compared
from minialbert.method.losses import attention_loss, hidden_loss, output_loss
from minialbert.method.objective import EncoderView, Request, comparable_rows, matched_pairs
from minialbert.method.sentence_vectors import Pooling, similarity_correlation

Batch = Mapping[str, Tensor]
Key = TypeVar("Key")


@dataclass
class HeldOutMetrics:
    """Means over held-out windows: nats, shares and cosines; None or absent where there is nothing to compare with.

    `output_kl` is KL(teacher || student) at masked tokens. By iteration with a matched layer: `cosine` to it, and
    `attention_kl`, KL(teacher || student) between attention rows. `masked_tokens` says how many were scored; `depths`
    has `mlm_loss` and `mlm_accuracy` by depth before the last, where they were asked for. Of texts'
    vectors, `vector_cosine` is that to the teacher's, and `similarity_correlation` Spearman's between both sets of
    pairwise similarities.
    """

    mlm_loss: float | None = None
    mlm_accuracy: float | None = None
    output_kl: float | None = None
    cosine: dict[int, float] = field(default_factory=dict)
    attention_kl: dict[int, float] = field(default_factory=dict)
    masked_tokens: int = 0
    depths: dict[int, dict[str, float]] = field(default_factory=dict)
    vector_cosine: float | None = None
    similarity_correlation: float | None = None

    def flat(self, prefix: str = "") -> dict[str, float]:
        """Return one level of named numbers, those of the last depth, for a log."""
        names = ("mlm_loss", "mlm_accuracy", "output_kl", "vector_cosine", "similarity_correlation")
        values = {name: getattr(self, name) for name in names}
        values |= {f"cosine_{iteration}": value for iteration, value in self.cosine.items()}
        values |= {f"attention_kl_{iteration}": value for iteration, value in self.attention_kl.items()}
        return {prefix + name: value for name, value in values.items() if value is not None}


class _Sums:
    """Sums and counts by name, kept on the CPU in double precision, and pairs of vectors."""

    def __init__(self) -> None:
        self.totals: defaultdict[Any, float] = defaultdict(float)
        self.counts: defaultdict[Any, float] = defaultdict(float)
        self.vectors: list[tuple[Tensor, Tensor]] = []

    def add(self, name: Any, mean: Tensor, count: float) -> None:
        self.totals[name] += float(mean) * count
        self.counts[name] += count

    def means(self, names: Mapping[Key, Any]) -> dict[Key, float]:
        """Return the means of some names by other keys; what was never counted is left out."""
        return {
            key: self.totals[name] / self.counts[name] for key, name in names.items() if self.counts[name]
        }


@torch.no_grad()
def measure_held_out(
    student: Callable[..., EncoderView],
    teacher: Callable[..., EncoderView] | None,
    batches: Iterable[Batch],
    *,
    layers: tuple[int, ...] = (),
    with_attention: bool = True,
    attention_heads: str = "match",
    depths: Sequence[int] = (),
    pooling: Pooling | None = None,
    num_windows: int,
) -> tuple[HeldOutMetrics, HeldOutMetrics, HeldOutMetrics]:
    """Return metrics over all windows, over the first half of them, and over the second.

    The spread of the two halves tells how far a difference between two students can be trusted. Student (in
    eval mode) and teacher (None for masked-LM metrics alone) are called with a batch and a request, and
    return a view. Batches are masked, the same for every student, and hold `num_windows` windows together.
    `layers` is the teacher layer of each iteration (0: none), `depths` are those before the last to score
    too. With `pooling` it is the vectors of texts, read without masks, that are compared.
    """
    parts = [_Sums(), _Sums()]
    seen = 0
    pairs = matched_pairs(layers)
    for batch in batches:
        half = parts[0] if seen < num_windows / 2 else parts[1]
        seen += batch["input_ids"].shape[0]
        positions = batch["labels"] != -100
        rows = with_attention and teacher is not None and "aligned_mask" not in batch
        iterations, matched = zip(*pairs, strict=True) if rows and pairs else ((), ())
        asked = None if pooling is not None else positions
        view = student(batch, Request(asked, iterations, depths=depths, pooling=pooling))
        target = None if teacher is None else teacher(batch, Request(asked, matched, pooling=pooling))
        _add_batch(half, view, target, batch, positions, pairs, rows, attention_heads)
    whole = _Sums()
    for part in parts:
        for name, total in part.totals.items():
            whole.totals[name] += total
            whole.counts[name] += part.counts[name]
        whole.vectors += part.vectors
    first, second = (_metrics(part, pairs, depths) for part in parts)
    return _metrics(whole, pairs, depths), first, second


def _add_batch(
    sums: _Sums,
    view: EncoderView,
    target: EncoderView | None,
    batch: Batch,
    positions: Tensor,
    pairs: list[tuple[int, int]],
    rows: bool,
    attention_heads: str,
) -> None:
    mask = compared(batch)
    masked, valid = float(positions.sum()), float(mask.sum())
    if view.logits is not None and masked:
        labels = batch["labels"][positions]
        for depth, logits in ((None, view.logits), *view.depth_logits.items()):  # None: the last
            loss = functional.cross_entropy(logits.float(), labels)
            sums.add(("mlm_loss", depth), loss, masked)
            sums.add(("mlm_accuracy", depth), (logits.argmax(-1) == labels).float().mean(), masked)
        if target is not None and target.logits is not None:
            sums.add("output_kl", output_loss(view.logits.float(), target.logits), masked)
    if target is None:
        return
    if view.vectors is not None and target.vectors is not None:
        sums.vectors.append((view.vectors.cpu(), target.vectors.cpu()))
    for iteration, layer in pairs:
        distance = hidden_loss(view.hidden_states[iteration], target.hidden_states[layer], mask)
        sums.add(("cosine", iteration), 1 - distance, valid)
        if rows:
            average = attention_heads == "average"
            divergence = attention_loss(
                *comparable_rows(view, iteration, target, layer, average=average),
                mask,
                log_rows=view.log_rows and target.log_rows,
            )
            sums.add(("attention_kl", iteration), divergence, valid)


def _metrics(sums: _Sums, pairs: list[tuple[int, int]], depths: Sequence[int]) -> HeldOutMetrics:
    def at(depth: int | None) -> dict[str, float]:
        return sums.means({name: (name, depth) for name in ("mlm_loss", "mlm_accuracy")})

    figures = at(None) | sums.means({"output_kl": "output_kl"})
    if sums.vectors:
        ours, theirs = (torch.cat(side) for side in zip(*sums.vectors, strict=True))
        figures["vector_cosine"] = float(functional.cosine_similarity(ours, theirs).mean())
        if len(ours) > 2:
            figures["similarity_correlation"] = similarity_correlation(ours, theirs)
    return HeldOutMetrics(
        **figures,
        cosine=sums.means({iteration: ("cosine", iteration) for iteration, _ in pairs}),
        attention_kl=sums.means({iteration: ("attention_kl", iteration) for iteration, _ in pairs}),
        masked_tokens=int(sums.counts["mlm_loss", None]),
        depths={depth: at(depth) for depth in depths},
    )
