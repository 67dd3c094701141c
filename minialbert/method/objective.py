"""The distillation objective as data: weights, layer map, directions, reductions, and the weighted sum."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import Tensor
from transformers.utils import ModelOutput

from minialbert.errors import UserError, listed, quoted
from minialbert.method.elastic import ElasticObjective
from minialbert.method.fast.rows import AttentionInputs
from minialbert.method.fast.vocabulary import vocabulary_losses
from minialbert.method.losses import (
    AttentionReduction,
    KLDirection,
    LayerMapStrategy,
    TokenReduction,
    at_least_one,
    attention_loss,
    embedding_loss,
    hidden_loss,
    layer_map,
    mean_divergence,
)
from minialbert.method.relations import Relation, relation_loss
from minialbert.method.sentence_vectors import Pooling, VectorObjective

Value = TypeVar("Value")

Preset = Literal["default", "paper", "as-published", "embeddings"]
PRESETS: tuple[str, ...] = get_args(Preset)
TERMS = ("mlm", "attention", "hidden", "output", "embedding", "relation")


@dataclass(frozen=True, eq=False)
class Request:
    """What an encoder is asked about a batch, beside its hidden states; `encoders.view_encoder` fulfils it.

    Layers, and iterations of a student, count from 1.

    Args:
        positions: bool (B, T), where logits are wanted; None for no logits.
        attention_layers: layers whose attention rows are wanted.
        after_dropout: these rows as probabilities after dropout, instead of log-probabilities before it; a
            teacher runs with its dropout on, as the release does in training.
        attention_inputs: layers whose queries, keys and values are wanted; only where attention is recorded.
        references: by layer, what its rows are compared with as they are made; only where it is recorded.
        direction: of that comparison, see `rows.attend_and_compare`.
        depths: iterations before the last whose logits at the masked tokens are wanted, of a student.
        pooling: how states become the vectors that are wanted; None for no vectors.
    """

    positions: Tensor | None = None
    attention_layers: Collection[int] = ()
    after_dropout: bool = False
    attention_inputs: Collection[int] = ()
    references: Mapping[int, AttentionInputs] = field(default_factory=dict)
    direction: KLDirection = "teacher-student"
    depths: Collection[int] = ()
    pooling: Pooling | None = None


@dataclass
class EncoderView:
    """What one encoder says about a batch, as far as it was asked.

    Args:
        hidden_states: hidden states by layer, (B, T, D); 0 is the embedding output, layers count from 1.
        attention_rows: attention rows by layer, (B, H, T, T); only the layers asked for.
        log_rows: whether `attention_rows` holds log-probabilities.
        logits: scores over the vocabulary at the predicted positions, (M, V), or None.
        attention_inputs: what rows are made of, by layer; only the layers asked for.
        attention_divergences: divergence of each row from the teacher's, by layer, (B, H, T), where the rows
            were compared as they were made.
        depth_logits: scores at the masked tokens, (M, V), read from iterations before the last.
        vectors: one vector for each text, (B, V), where they were asked for.
    """

    hidden_states: dict[int, Tensor]
    attention_rows: dict[int, Tensor] = field(default_factory=dict)
    log_rows: bool = False
    logits: Tensor | None = None
    attention_inputs: dict[int, AttentionInputs] = field(default_factory=dict)
    attention_divergences: dict[int, Tensor] = field(default_factory=dict)
    depth_logits: dict[int, Tensor] = field(default_factory=dict)
    vectors: Tensor | None = None

    @classmethod
    def from_outputs(cls, outputs: ModelOutput, positions: Tensor) -> EncoderView:
        """Return the view of plain Transformers outputs, called with `output_hidden_states=True`.

        The attention term needs `output_attentions=True` too. Logits count at `positions`, bool (B, T); they are None
        for an encoder without a masked-LM head.
        """
        hidden_states = dict(enumerate(outputs.get("hidden_states") or ()))
        rows = {
            layer: rows for layer, rows in enumerate(outputs.get("attentions") or (), 1) if rows is not None
        }
        logits = outputs.get("logits")
        return cls(hidden_states, rows, logits=None if logits is None else logits[positions])


@dataclass(frozen=True)
class LossBatch:
    """What a registered term knows of a batch: `mask` (B, T), `labels` (B, T), -100 where not masked, and `positions`.

    `positions` (B, T) are where the logits stand. `pairs` are the matched iterations and layers, both from 1; divide
    sums by `counts`, so that micro-batches add up.
    """

    pairs: Sequence[tuple[int, int]]
    mask: Tensor
    labels: Tensor
    positions: Tensor
    counts: TokenCounts


Compute = Callable[[EncoderView, EncoderView, LossBatch], Tensor]
Need = Literal["hidden_states", "attention_rows", "attention_inputs", "logits"]
_REGISTERED: dict[str, tuple[Compute, frozenset[str]]] = {}


def register_loss(name: str, *, needs: tuple[Need, ...] = ("hidden_states",)) -> Callable[[Compute], Compute]:
    """Return a decorator that makes a function of two views and a `LossBatch` a term, until the process ends.

    Its weight is `DistillationObjective(extra={name: weight})`; without one it is not computed. `needs` are the fields
    of `EncoderView` it reads; hidden states are always there, 0 being the embeddings. The teacher's have no gradients.
    A name registered again is replaced.
    """
    if not name.isidentifier() or name in (*TERMS, *VectorObjective().weights, "triplet", "elastic", "total"):
        raise UserError(f"a loss term cannot be called {quoted(name)}: give a new name of letters and digits")
    if unknown := set(needs) - set(get_args(Need)):
        raise UserError(
            f"needs of {name}: {listed(sorted(unknown))} not known: give {listed(get_args(Need))}"
        )

    def register(compute: Compute) -> Compute:
        _REGISTERED[name] = (compute, frozenset(needs))
        return compute

    return register


@dataclass
class DistillationTerms:
    """The named terms of one loss, unweighted (alignment summed over iterations), and the weighted total.

    `relation` and `elastic`, which are not terms of the paper, are None where nothing asks for them. `elastic`
    holds its own two weights already.
    """

    mlm: Tensor
    attention: Tensor
    hidden: Tensor
    output: Tensor
    embedding: Tensor
    total: Tensor
    relation: Tensor | None = None
    elastic: Tensor | None = None
    extra: dict[str, Tensor] = field(default_factory=dict)

    def items(self) -> list[tuple[str, Tensor]]:
        """Return (name, scalar) pairs in the order of Eq. 11, the total last."""
        values = [(name, getattr(self, name)) for name in TERMS]
        values += [*self.extra.items(), ("elastic", self.elastic), ("total", self.total)]
        return [(name, value) for name, value in values if value is not None]


@dataclass(frozen=True)
class TokenCounts:
    """How many items the losses of one optimiser step cover, over all its micro-batches and processes.

    Masked tokens, tokens that are not padding, and windows (sequences).
    """

    masked: Tensor | float
    valid: Tensor | float
    windows: Tensor | float

    @classmethod
    def of(cls, labels: Tensor, attention_mask: Tensor) -> TokenCounts:
        """Count one batch."""
        return cls((labels != -100).sum(), attention_mask.sum(), labels.shape[0])


@dataclass(frozen=True)
class DistillationObjective:
    """What a student is trained for: weights of the terms, and how each is computed (Eq. 11).

    L = mlm_weight L_MLM + sum_l (attention_weight L_att(l) + hidden_weight L_hidden(l))
        + output_weight L_out + embedding_weight L_embed + relation_weight L_rel + L_elastic

    The paper has one weight for alignment, lambda_2; here its two parts have one each. A term with weight 0
    gives no gradient; it is still reported where what it compares is at hand, and is 0 where it is not.

    Examples:
        >>> objective = minialbert.DistillationObjective.preset("paper", hidden_weight=1.0)
        >>> objective.kl_direction, objective.weighted_terms
        ('student-teacher', ('mlm', 'attention', 'hidden', 'output'))

    Args:
        mlm_weight: lambda_1.
        attention_weight: weight of the attention rows (Eq. 7) in lambda_2's bracket.
        hidden_weight: weight of the hidden states (Eq. 8) in lambda_2's bracket.
        output_weight: lambda_3.
        embedding_weight: weight of the embedding loss (Eq. 12); the paper's ablation has 3.
        relation_weight: weight of MiniLMv2's relations, see `relations.relation_loss`; not in the paper.
        relations: which relations.
        relation_heads: into how many heads they are split; the teacher's number when absent.
        relation_layers: "last" compares the last matched iteration alone, as MiniLMv2 does; "all" every one.
        layer_map: which teacher layer each iteration is aligned with, see `method.losses.layer_map`.
        kl_direction: direction of both KL divergences.
        attention_reduction: see `method.losses.attention_loss`.
        attention_epsilon: see `method.losses.attention_loss`.
        attention_heads: "match" wants equal head counts; "average" aligns rows averaged over heads.
        token_reduction: Eqs. 6 and 10 per masked token ("mean"), or summed over each window ("sum", as
            printed).
        output_positions: Eq. 10 at masked tokens ("masked"), or at every valid token ("all", as DistilBERT).
        temperature: of the output loss.
        teacher_dropout: run the teacher with its dropout on and take attention rows after dropout, as the
            release does in training.
        elastic: how depths before the last are trained too; None for the last alone.
        vectors: what the vectors of whole texts are trained for; None for tokens alone. Texts are then read without
            masks, and no term may need logits.
        extra: weights, above 0, of terms that `register_loss` made, by name.
    """

    mlm_weight: float = 1.0
    attention_weight: float = 3.0
    hidden_weight: float = 3.0
    output_weight: float = 5.0
    embedding_weight: float = 0.0
    relation_weight: float = 0.0
    relations: tuple[Relation, ...] = ("query-key", "value-value")
    relation_heads: int | None = None
    relation_layers: Literal["last", "all"] = "last"
    layer_map: LayerMapStrategy | tuple[int, ...] = "uniform"
    kl_direction: KLDirection = "teacher-student"
    attention_reduction: AttentionReduction = "rows"
    attention_epsilon: float = 0.0
    attention_heads: Literal["match", "average"] = "match"
    token_reduction: TokenReduction = "mean"
    output_positions: Literal["masked", "all"] = "masked"
    temperature: float = 1.0
    teacher_dropout: bool = False
    elastic: ElasticObjective | None = None
    vectors: VectorObjective | None = None
    extra: Mapping[str, float] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        """Refuse weights of terms that nobody registered, and of logits where texts are read without masks."""
        if self.vectors is not None and (self.mlm_weight or self.output_weight or self.elastic is not None):
            raise UserError(
                "vectors of texts are learnt without masks, so nothing is left for distill.mlm_weight, "
                "distill.output_weight and distill.elastic: set them to 0 and false"
            )
        for name, weight in self.extra.items():
            if name not in _REGISTERED:
                known = listed(_REGISTERED) or "none"
                raise UserError(f"no loss term {quoted(name)} is registered ({known}): see register_loss")
            if not weight > 0:
                raise UserError(f"the weight of the loss term {name} must be above 0, got {weight}")

    def _needs(self, field_of_view: Need) -> bool:
        return any(field_of_view in _REGISTERED[name][1] for name in self.extra)

    @classmethod
    def preset(cls, name: Preset = "default", **overrides: Any) -> DistillationObjective:
        """Return one of four objectives, with overrides; None keeps the preset's value.

        "default" has KL(teacher || student), attention averaged per row, means over tokens, and the teacher in eval
        mode; "paper" is as printed: KL(student || teacher), Eqs. 6 and 10 summed over each window; "as-published" has
        the release's arithmetic; "embeddings" learns the vectors of a sentence encoder, and hidden states on the way.
        """
        presets: dict[str, dict[str, Any]] = {
            "default": {},
            "paper": {"kl_direction": "student-teacher", "token_reduction": "sum"},
            "as-published": {
                "layer_map": "alternate",
                "attention_reduction": "elements",
                "attention_epsilon": 1e-12,
                "teacher_dropout": True,
            },
            "embeddings": {
                "mlm_weight": 0.0,
                "attention_weight": 0.0,
                "hidden_weight": 1.0,
                "output_weight": 0.0,
                "vectors": VectorObjective(),
            },
        }
        if name not in presets:
            raise ValueError(f"preset {name!r} is not known: give one of {', '.join(presets)}")
        chosen = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in overrides.items()
            if value is not None
        }
        return cls(**{**presets[name], **chosen})

    def without(self, *terms: str) -> DistillationObjective:
        """Return the same objective with the weight of the named terms ("output", …) set to 0."""
        weights: dict[str, Any] = {f"{term}_weight": 0.0 for term in terms if term not in self.extra}
        extra = {name: weight for name, weight in self.extra.items() if name not in terms}
        return replace(self, extra=extra, **weights)

    def for_two_vocabularies(self) -> DistillationObjective:
        """Return the same objective without terms that need equal tokens in both models; UserError if none is left."""
        if any(self._needs(one) for one in ("attention_rows", "attention_inputs", "logits")):
            raise UserError(
                "between two vocabularies a registered loss term may read hidden states alone: leave it out"
            )
        left = self.without("attention", "output", "relation")
        if not left.weighted_terms:
            raise UserError(
                "between two vocabularies nothing is left to learn: set distill.hidden_weight above 0"
            )
        return left

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as plain data, as JSON would give them back."""
        values = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(replace(self, vectors=None)).items()
        }
        del values["elastic"], values["vectors"], values["extra"]
        values |= {} if self.vectors is None else self.vectors.to_dict()
        values |= {f"{name}_weight": weight for name, weight in self.extra.items()}
        return values if self.elastic is None else {**values, "elastic": self.elastic.to_dict()}

    def resolve_layers(self, num_iterations: int, num_teacher_layers: int) -> tuple[int, ...]:
        """Return the layer map as one teacher layer per iteration (0: none); see `method.losses.layer_map`."""
        return layer_map(num_iterations, num_teacher_layers, self.layer_map)

    @property
    def weighted_terms(self) -> tuple[str, ...]:
        """Names of the terms that have a weight, in the order of Eq. 11."""
        vectors = self.vectors.weights if self.vectors is not None else {}
        names = (*(name for name in TERMS if getattr(self, f"{name}_weight")), *vectors, *self.extra)
        return names if self.elastic is None else (*names, "elastic")

    @property
    def needs_attention(self) -> bool:
        """Whether attention rows are compared."""
        return self.attention_weight > 0 or self._needs("attention_rows")

    @property
    def compares_plain_rows(self) -> bool:
        """Whether rows are compared as they are: head by head, before dropout, without an epsilon."""
        return (
            self.needs_attention
            and self.attention_heads == "match"
            and self.attention_epsilon == 0
            and not self.teacher_dropout
            and not self._needs("attention_rows")
        )

    @property
    def depends_on_length(self) -> bool:
        """Whether the losses of a window depend on how far its row of the batch is filled up."""
        return bool(self.extra) or (self.needs_attention and self.attention_reduction == "elements")

    @property
    def needs_teacher(self) -> bool:
        """Whether any term compares the student with a teacher."""
        return any(name not in ("mlm", "elastic") for name in self.weighted_terms)

    def compared_layers(self, layers: Sequence[int]) -> list[tuple[int, int]]:
        """Return the (iteration, layer) pairs of a resolved layer map whose attention rows are compared."""
        return matched_pairs(layers) if self.needs_attention else []

    def related_layers(self, layers: Sequence[int]) -> list[tuple[int, int]]:
        """Return the (iteration, layer) pairs of a resolved layer map whose relations are compared."""
        if not self.relation_weight:
            return []
        return matched_pairs(layers) if self.relation_layers == "all" else matched_pairs(layers)[-1:]

    def _asked_inputs(self, layers: Sequence[int]) -> list[tuple[int, int]]:
        return matched_pairs(layers) if self._needs("attention_inputs") else self.related_layers(layers)

    def teacher_request(
        self, layers: Sequence[int], positions: Tensor | None = None, *, as_it_attends: bool = False
    ) -> Request:
        """Return what to ask a teacher about a batch, whose logits are needed at `positions`.

        With `as_it_attends` it is what rows are made of: the student's are then compared as they are made.
        """
        compared = [layer for _, layer in self.compared_layers(layers)]
        related = [layer for _, layer in self._asked_inputs(layers)]
        return Request(
            positions=positions if self.output_weight or self._needs("logits") else None,
            attention_layers=() if as_it_attends else compared,
            attention_inputs=[*related, *compared] if as_it_attends else related,
            after_dropout=self.teacher_dropout,
            pooling=self.vectors.pooling if self.vectors is not None else None,
        )

    def student_request(
        self,
        layers: Sequence[int],
        positions: Tensor | None = None,
        *,
        teacher: EncoderView | None = None,
        as_it_attends: bool = False,
        depths: Sequence[int] = (),
    ) -> Request:
        """Return what to ask a student about the batch of which its teacher has given a view.

        With `as_it_attends` its rows are compared with that view as they are made. `depths` are iterations before the
        last that this step trains too.
        """
        compared = self.compared_layers(layers) if teacher is not None else []
        references = {}
        if teacher is not None and as_it_attends:
            references = {iteration: teacher.attention_inputs[layer] for iteration, layer in compared}
        return Request(
            positions=None if self.vectors is not None else positions,
            attention_layers=() if as_it_attends else [iteration for iteration, _ in compared],
            attention_inputs=[iteration for iteration, _ in self._asked_inputs(layers)],
            after_dropout=self.teacher_dropout,
            references=references,
            direction=self.kl_direction,
            depths=depths,
            pooling=self.vectors.pooling if self.vectors is not None else None,
        )

    def positions(self, labels: Tensor, attention_mask: Tensor) -> Tensor:
        """Return where logits are needed, bool (B, T)."""
        if self.output_positions == "all" and self.output_weight > 0:
            return attention_mask.bool()
        return labels != -100

    def __call__(
        self,
        student_outputs: ModelOutput | EncoderView,
        teacher_outputs: ModelOutput | EncoderView | None,
        *,
        labels: Tensor,
        attention_mask: Tensor | None = None,
        counts: TokenCounts | None = None,
        num_teacher_layers: int | None = None,
    ) -> DistillationTerms:
        """Return every term and the weighted total for one batch.

        Args:
            student_outputs: Transformers outputs with `hidden_states` and `attentions`, or a view.
            teacher_outputs: the same of the teacher on the same batch; None for masked-LM alone.
            labels: int64 (B, T), -100 where a token was not masked.
            attention_mask: (B, T), 1 for tokens and 0 for padding; all ones when absent.
            counts: items of the whole optimiser step; those of this batch when absent.
            num_teacher_layers: needed with a view that does not hold every layer.

        Returns:
            The terms, with gradients towards the student only.

        Raises:
            ValueError: if an output that a term needs is not there, or shapes differ.
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(labels)
        positions = self.positions(labels, attention_mask)
        student = _view(student_outputs, positions)
        teacher = None if teacher_outputs is None else _view(teacher_outputs, positions)
        counts = counts or TokenCounts.of(labels, attention_mask)
        zero = torch.zeros((), device=labels.device)
        terms = {name: zero for name in TERMS if name != "relation"}

        # The printed sums run over the sequence, and a batch holds several.
        masked_count = counts.masked if self.token_reduction == "mean" else counts.windows
        valid_count = counts.valid if self.token_reduction == "mean" else counts.windows
        layers: tuple[int, ...] = ()
        if teacher is not None and student.hidden_states and teacher.hidden_states:
            layers = self.resolve_layers(
                max(student.hidden_states), num_teacher_layers or max(teacher.hidden_states)
            )
            terms |= self._alignment(student, teacher, layers, attention_mask, counts)
        elif teacher is not None and not {"mlm", "output", "elastic"}.issuperset(self.weighted_terms):
            raise ValueError(
                "the alignment terms need hidden states of student and teacher: call both with "
                "output_hidden_states=True"
            )
        output_count = masked_count if self.output_positions == "masked" else valid_count
        terms |= self._vocabulary(student, teacher, labels[positions], masked_count, output_count)
        weights = {name: getattr(self, f"{name}_weight") for name in terms}
        extra: dict[str, Tensor] = {}
        if teacher is not None and self.vectors is not None:
            if student.vectors is None or teacher.vectors is None:
                raise ValueError(
                    "the vector terms need views of student and teacher with vectors: ask with `pooling`"
                )
            extra |= self.vectors(student.vectors, teacher.vectors, count=counts.windows)
            weights |= self.vectors.weights
        if teacher is not None and self.extra:
            batch = LossBatch(matched_pairs(layers), attention_mask, labels, positions, counts)
            extra |= {name: _REGISTERED[name][0](student, teacher, batch) for name in self.extra}
            weights |= self.extra
        values = terms | extra
        total, elastic = sum((weight * values[name] for name, weight in weights.items()), zero), None
        if self.elastic is not None:
            elastic = self.elastic(
                student.depth_logits, student.logits, labels[positions],
                count=masked_count, temperature=self.temperature,
            )  # fmt: skip
            total = total + elastic
        return DistillationTerms(**terms, total=total, elastic=elastic, extra=extra)

    def _vocabulary(
        self,
        student: EncoderView,
        teacher: EncoderView | None,
        labels: Tensor,
        masked_count: Tensor | float,
        output_count: Tensor | float,
    ) -> dict[str, Tensor]:
        if student.logits is None and self.mlm_weight:
            raise ValueError("the MLM term needs the student's logits: give a student with a masked-LM head")
        teacher_logits = None if teacher is None else teacher.logits
        if teacher is not None and self.output_weight and (student.logits is None or teacher_logits is None):
            raise ValueError(
                "the output term needs logits of student and teacher: a teacher without a masked-LM head "
                "needs output_weight 0"
            )
        if student.logits is None:
            return {}
        cross_entropy, divergence = vocabulary_losses(
            student.logits, labels, teacher_logits, direction=self.kl_direction, temperature=self.temperature
        )
        mlm = cross_entropy.sum() / at_least_one(masked_count)
        output = self.temperature**2 * divergence.sum() / at_least_one(output_count)
        return {
            "mlm": mlm if self.mlm_weight else mlm.detach(),
            "output": output if self.output_weight else output.detach(),
        }

    def _alignment(
        self,
        student: EncoderView,
        teacher: EncoderView,
        layers: Sequence[int],
        attention_mask: Tensor,
        counts: TokenCounts,
    ) -> dict[str, Tensor]:
        zero, pairs = torch.zeros((), device=attention_mask.device), matched_pairs(layers)
        compared = {
            "attention": pairs, "hidden": pairs, "embedding": [(0, 0)], "relation": self.related_layers(layers),
        }  # fmt: skip
        terms = {}
        for name, matched in compared.items():
            if not matched:
                continue
            weight = getattr(self, f"{name}_weight")
            with torch.set_grad_enabled(torch.is_grad_enabled() and weight > 0):
                try:
                    parts = (
                        self._term(name, student, teacher, *pair, attention_mask, counts) for pair in matched
                    )
                    terms[name] = sum(parts, zero)
                except ValueError:
                    if weight:
                        raise
                    terms[name] = zero  # nothing to compare, and nothing was asked for
        return terms

    def _term(
        self,
        name: str,
        student: EncoderView,
        teacher: EncoderView,
        iteration: int,
        layer: int,
        mask: Tensor,
        counts: TokenCounts,
    ) -> Tensor:
        """Return one alignment term between an iteration and its layer; 0 is the embeddings of both."""
        if name in ("hidden", "embedding"):
            what = "hidden states" if name == "hidden" else "embeddings"
            ours = _get(student.hidden_states, iteration, f"student {what}", f"{name}_weight")
            theirs = _get(teacher.hidden_states, layer, what, f"{name}_weight").detach()
            loss = hidden_loss if name == "hidden" else embedding_loss
            return loss(ours, theirs, mask, count=counts.valid)
        if name == "relation":
            return relation_loss(
                _get(student.attention_inputs, iteration, "student queries and keys", "relation_weight"),
                _get(teacher.attention_inputs, layer, "queries and keys", "relation_weight"),
                mask,
                relations=self.relations,
                heads=self.relation_heads,
                direction=self.kl_direction,
                count=counts.valid,
            )
        reduction = self.attention_reduction
        if iteration in student.attention_divergences:
            divergence = student.attention_divergences[iteration]
            return mean_divergence(divergence, mask, reduction=reduction, count=counts.valid)
        return attention_loss(
            *comparable_rows(student, iteration, teacher, layer, average=self.attention_heads == "average"),
            mask,
            direction=self.kl_direction,
            reduction=reduction,
            epsilon=self.attention_epsilon,
            log_rows=student.log_rows and teacher.log_rows,
            count=counts.valid,
        )


def matched_pairs(layers: Sequence[int]) -> list[tuple[int, int]]:
    """Return each iteration that a layer map matches with a layer, and that layer, counted from 1."""
    return [(iteration, layer) for iteration, layer in enumerate(layers, 1) if layer]


def comparable_rows(
    student: EncoderView, iteration: int, teacher: EncoderView, layer: int, *, average: bool
) -> tuple[Tensor, Tensor]:
    """Return the rows of an iteration and of its teacher's layer, (B, H, T, T), in one form.

    They are log-probabilities where both views hold such, else probabilities; with `average`, those of all heads as
    one, so that head counts may differ. Only the student's have gradients. Raises ValueError where a view lacks them.
    """
    ours = _get(student.attention_rows, iteration, "student attention rows", "attention_weight")
    theirs = _get(teacher.attention_rows, layer, "attention rows", "attention_weight").detach()
    if average:
        ours, theirs = average_heads(ours, student.log_rows), average_heads(theirs, teacher.log_rows)
    if student.log_rows != teacher.log_rows:
        ours = ours.exp() if student.log_rows else ours
        theirs = theirs.exp() if teacher.log_rows else theirs
    return ours, theirs


def average_heads(rows: Tensor, log_rows: bool) -> Tensor:
    """Return attention rows averaged over heads, (B, 1, T, T); log-probabilities stay such."""
    if log_rows:
        return rows.logsumexp(dim=1, keepdim=True) - torch.tensor(rows.shape[1], dtype=rows.dtype).log()
    return rows.mean(dim=1, keepdim=True)


def _view(outputs: ModelOutput | EncoderView, positions: Tensor) -> EncoderView:
    return outputs if isinstance(outputs, EncoderView) else EncoderView.from_outputs(outputs, positions)


def _get(values: Mapping[int, Value], layer: int, what: str, weight: str) -> Value:
    if layer not in values:
        raise ValueError(
            f"the {what} of layer {layer} are not among the outputs (there are: "
            f"{', '.join(map(str, sorted(values))) or 'none'}): call the model with them, or set {weight} "
            "to 0"
        )
    return values[layer]
