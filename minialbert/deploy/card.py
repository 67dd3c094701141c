"""The model card of a hub folder, from `card.md.j2`: made from a model's configuration and its run records alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from minialbert.data.glue import GLUE_TASKS
from minialbert.data.task_types import TASK_TYPES
from minialbert.deploy.evidence import ITS_TEACHER, THIS_MODEL, Evidence, ModelFacts, Result
from minialbert.errors import in_words
from minialbert.method.encoders import ARCHITECTURES, HEADS
from minialbert.report.tables import escape, show
from minialbert.runs.records import is_tagging, look_up

_TEMPLATE = Path(__file__).with_name("card.md.j2")

# Ids of old that the hub still redirects, the only ones without an owner.
_OWNERS = {
    "google-bert": (
        "bert-base-uncased", "bert-base-cased", "bert-large-uncased", "bert-large-cased",
        "bert-base-multilingual-cased", "bert-base-multilingual-uncased",
    ),
    "FacebookAI": ("roberta-base", "roberta-large", "xlm-roberta-base", "xlm-roberta-large"),
    "distilbert": ("distilbert-base-uncased", "distilbert-base-cased", "distilroberta-base"),
    "albert": ("albert-base-v1", "albert-base-v2", "albert-large-v2"),
}  # fmt: skip
_CANONICAL = {name: f"{owner}/{name}" for owner, names in _OWNERS.items() for name in names}
_METRICS = {
    "mlm_accuracy": ("accuracy", "masked-token accuracy"),
    "mlm_loss": ("loss", "masked-token loss, nats"),
    "matthews_correlation": ("matthews_correlation", "Matthews correlation"),
    "entity_f1": ("f1", "entity F1, by word"),
    "entity_precision": ("precision", "entity precision"),
    "entity_recall": ("recall", "entity recall"),
    "entity_f1_subword": ("f1", "entity F1, by word piece"),
    "token_accuracy": ("accuracy", "accuracy of tags"),
    "pearson": ("pearson", "Pearson correlation"),
    "spearmanr": ("spearmanr", "Spearman correlation"),
    "pearson_spearman": ("pearson_spearman", "mean of Pearson and Spearman correlation"),
    "mean_squared_error": ("mse", "mean squared error"),
    "f1": ("f1", "F1"),
    "f1_macro": ("f1", "F1, macro"),
    "f1_micro": ("f1", "F1, micro"),
}
# Of the objective's terms, for a reader; a term that is not among them is called as the objective calls it.
_TERMS = {
    "mlm": "masked LM", "hidden": "hidden states", "output": "output distribution", "embedding": "embeddings",
}  # fmt: skip


def model_card(
    facts: ModelFacts, evidence: Evidence, *, license: str, language: str, repo_id: str | None = None
) -> str:
    """Return the model card, the contents of `README.md`, from facts and what records say about the model.

    A figure without a record is not in it, and neither is a local path. Where there is no `repo_id`, a placeholder
    stands in the examples.
    """
    title = repo_id.rpartition("/")[2] if repo_id else facts.name
    head = ARCHITECTURES[facts.architecture]
    distilled, tuning, results = _distilled(evidence.distillation), evidence.tuning, evidence.results
    tags = ["minialbert", *(["distillation"] if distilled else [])]
    tags += ["sentence-transformers", "feature-extraction"] if facts.sentence_embeddings else []
    sources = [name for name in distilled.get("sources", []) if name[:4] == "hub:"]
    named = (name.removeprefix("hub:").split(":")[0] for name in sources)
    data = ModelCardData(
        language=language,
        license=license,
        library_name="transformers",
        pipeline_tag=head.pipeline,
        tags=tags,
        datasets=list(dict.fromkeys(named)) or None,
        base_model=hub_id(tuning.row.model if tuning is not None else distilled.get("teacher")),
        eval_results=(index := _eval_results(results)) or None,
        model_name=title if index else None,
    )
    card = ModelCard.from_template(
        data, template_path=str(_TEMPLATE), text=escape, shown=lambda name: escape(public_name(name)),
        number="{:,}".format, title=title, name=repo_id or "OWNER/NAME", license=license, facts=facts,
        auto=head.auto.__name__, pipeline=head.pipeline, what=head.description, config=facts.config,
        distilled=distilled, tuning=tuning, results=[_row(result) for result in results],
        spread=any(result.value.sd is not None for result in results),
        held_out=any(result.problem == "masked-lm" for result in results),
    )  # fmt: skip
    return f"{str(card).rstrip()}\n"


def hub_id(name: str | None) -> str | None:
    """Return the hub id, OWNER/NAME, that a record's name of a model is, or None for a local one."""
    if name is None or name in _CANONICAL:
        return _CANONICAL.get(name or "")
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    # Only a path relative to this folder could still be meant.
    return name if name.count("/") == 1 and not Path(name).exists() else None


def public_name(name: str) -> str:
    """Return a name of a model or of data as a card may show it: a hub id, a hub data set, or a path's last part."""
    plain = " ".join(name.split())
    if hub_id(plain) is not None or re.fullmatch(r"hub:[\w.-]+/[\w.-]+(:[\w.-]*){0,2}", plain):
        return plain
    return re.split(r"[\\/]", plain.rstrip("\\/"))[-1]


def _eval_results(results: tuple[Result, ...]) -> list[EvalResult]:
    """Return the figures of this model and of what was tuned from it, in the hub's form."""
    own = {result.task for result in results if result.what == THIS_MODEL}
    found = []
    for result in results:
        if result.what == ITS_TEACHER or (result.what != THIS_MODEL and result.task in own):
            continue
        metric, name = _named(result.metric)
        about = [] if result.what == THIS_MODEL else [result.what]
        about += [f"mean of {result.value.n} seeds"] if result.value.n > 1 else []
        name = f"{name} ({'; '.join(about)})" if about else name
        head = TASK_TYPES[result.problem].head if result.problem in TASK_TYPES else result.problem
        kind = HEADS[head].pipeline if head in HEADS else "text-classification"
        said = {"metric_type": metric, "metric_value": round(result.value.mean, 6), "metric_name": name}
        found.append(EvalResult(task_type=kind, **said, **_dataset(result)))
    return found


def _named(metric: str) -> tuple[str, str]:
    """Return what the hub and a reader call a figure."""
    return _METRICS.get(metric, (metric, in_words(metric)))


def _dataset(result: Result) -> dict[str, Any]:
    if result.problem == "masked-lm":
        name = "held-out windows of the training texts"
        return {"dataset_type": "held-out-windows", "dataset_name": name}
    named: dict[str, Any] = {"dataset_split": result.split}
    if result.task in GLUE_TASKS and not is_tagging(result.problem):
        name = f"GLUE {GLUE_TASKS[result.task].folder}"
        return {"dataset_type": "glue", "dataset_config": result.task, "dataset_name": name, **named}
    task = public_name(result.task)
    kind = re.sub(r"[^\w.-]+", "-", task).strip("-") or "task"
    return {"dataset_type": kind, "dataset_name": task, **named}


def _row(result: Result) -> tuple[str, ...]:
    _, metric = _named(result.metric)
    value = result.value
    shown, unit = show(value).rpartition(" (")[0], " %" if value.percent else ""
    return (result.what, public_name(result.task), result.split, metric, f"{shown}{unit}", str(value.n))


def _distilled(record: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what a distillation's record says that a card shows: nothing of another kind than it should be."""
    if record is None:
        return {}
    teacher = look_up(record, "model", "teacher", kind=str)
    sources = look_up(record, "data", "sources", kind=list) or []
    layers = look_up(record, "layer_map", kind=list) or []
    return {
        "teacher": teacher if teacher and teacher.strip() else None,
        "teacher_size": look_up(record, "model", "teacher_encoder_parameters", kind=int),
        "sources": [public_name(name) for name in sources if isinstance(name, str) and name.strip()],
        "steps": look_up(record, "training", "steps", kind=int),
        "windows": look_up(record, "training", "windows", kind=int),
        "length": look_up(record, "recipe", "data", "window_length", kind=int),
        "weights": _weights(look_up(record, "objective", kind=Mapping) or {}),
        "layers": layers if all(isinstance(layer, int) for layer in layers) else [],
        "seed": look_up(record, "seed", kind=int),
    }


def _weights(objective: Mapping[str, Any]) -> list[str]:
    """Return an objective's terms and their weights; one that has weights of its own names them in brackets."""
    terms = []
    for key, value in objective.items():
        name = key.removesuffix("_weight")
        if isinstance(value, Mapping) and (inner := _weights(value)):
            terms.append(f"{name} ({', '.join(inner)})")
        elif name != key and (weight := look_up(objective, key, kind=(int, float))):
            terms.append(f"{_TERMS.get(name, name)} {weight:g}")
    return terms
