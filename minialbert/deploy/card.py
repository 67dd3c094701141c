"""The model card of a hub folder: Markdown under YAML, made from a model's configuration and its run records alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from minialbert.data.glue import GLUE_TASKS
from minialbert.deploy.evidence import ITS_TEACHER, THIS_MODEL, Evidence, ModelFacts, Result, look_up
from minialbert.report.tables import Table, escape
from minialbert.runs.records import Cell

PAPER_URL = "https://aclanthology.org/2023.eacl-main.83"
CITATION = """@inproceedings{nouriborji-etal-2023-minialbert,
    title = "{M}ini{ALBERT}: Model Distillation via Parameter-Efficient Recursive Transformers",
    author = "Nouriborji, Mohammadmahdi and Rohanian, Omid and Kouchaki, Samaneh and Clifton, David A.",
    booktitle = "Proceedings of the 17th Conference of the European Chapter of the Association for Computational \
Linguistics",
    month = may,
    year = "2023",
    pages = "1161--1173",
    url = "https://aclanthology.org/2023.eacl-main.83",
}"""

# By architecture: its Auto class, its task on the hub, and what it is, for a reader.
_HEADS = {
    "MiniAlbertModel": ("AutoModel", "feature-extraction", "encoder without a head"),
    "MiniAlbertForMaskedLM": ("AutoModelForMaskedLM", "fill-mask", "encoder with a masked-language-modelling head"),
    "MiniAlbertForSequenceClassification": (
        "AutoModelForSequenceClassification", "text-classification", "encoder with a head that classifies a text",
    ),
    "MiniAlbertForTokenClassification": (
        "AutoModelForTokenClassification", "token-classification", "encoder with a head that labels every token",
    ),
    "MiniAlbertForQuestionAnswering": (
        "AutoModelForQuestionAnswering", "question-answering", "encoder with a head that marks the span of an answer",
    ),
}  # fmt: skip
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
    "entity_f1": ("f1", "entity F1, by word, strict IOB2"),
    "entity_precision": ("precision", "entity precision"),
    "entity_recall": ("recall", "entity recall"),
    "entity_f1_subword": ("f1", "entity F1, by word piece"),
    "token_accuracy": ("accuracy", "accuracy of tags"),
    "pearson": ("pearson", "Pearson correlation"),
    "spearmanr": ("spearmanr", "Spearman correlation"),
    "pearson_spearman": ("pearson_spearman", "mean of Pearson and Spearman correlation"),
    "mean_squared_error": ("mse", "mean squared error"),
    "accuracy": ("accuracy", "accuracy"),
    "f1": ("f1", "F1"),
    "f1_macro": ("f1", "F1, macro"),
    "f1_micro": ("f1", "F1, micro"),
}
_WEIGHTS = {
    "mlm_weight": "masked LM",
    "attention_weight": "attention",
    "hidden_weight": "hidden states",
    "output_weight": "output distribution",
    "embedding_weight": "embeddings",
}
_MOST_LABELS = 60


def model_card(
    facts: ModelFacts, evidence: Evidence, *, license: str, language: str, repo_id: str | None = None
) -> str:
    """Return the model card.

    Args:
        facts: the model.
        evidence: what records say about it.
        license: the hub's identifier of a licence.
        language: code of a language, as "en".
        repo_id: where it will be, OWNER/NAME; a placeholder stands in the examples when absent.

    Returns:
        Contents of `README.md`. A figure without a record is not in it, and neither is a local path.
    """
    title = repo_id.rpartition("/")[2] if repo_id else facts.name
    parts = [
        f"---\n{_front_matter(facts, evidence, license, language, title)}---\n",
        f"# {escape(title)}\n",
        _introduction(facts, evidence),
        _architecture(facts),
        _distillation(evidence.distillation),
        _tuning(facts, evidence),
        _results(evidence),
        _usage(facts, repo_id or "OWNER/NAME"),
        _limitations(facts, evidence),
        f"## Citation\n\n```bibtex\n{CITATION}\n```\n",
        _licence(license),
    ]
    return "\n".join(part for part in parts if part)


def hub_id(name: str | None) -> str | None:
    """Return the hub id that a record's name of a model is, with its owner, or None for a local one.

    Args:
        name: as in a record, where a local path is down to its last part.

    Returns:
        OWNER/NAME or None.
    """
    if name is None or name in _CANONICAL:
        return _CANONICAL.get(name or "")
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    # Only a path relative to this folder could still be meant.
    return name if name.count("/") == 1 and not Path(name).exists() else None


def public_name(name: str) -> str:
    """Return a name as a card may show it: a hub id, a hub data set, or the last part of a path.

    Args:
        name: of a model, or of data.

    Returns:
        A name without directories.
    """
    plain = " ".join(name.split())
    if hub_id(plain) is not None or re.fullmatch(r"hub:[\w.-]+/[\w.-]+(:[\w.-]*){0,2}", plain):
        return plain
    return re.split(r"[\\/]", plain.rstrip("\\/"))[-1]


def _front_matter(facts: ModelFacts, evidence: Evidence, license: str, language: str, title: str) -> str:
    _, pipeline_tag, _ = _HEADS[facts.architecture]
    values: dict[str, Any] = {"language": language, "license": license, "library_name": "transformers"}
    values["pipeline_tag"] = pipeline_tag
    tags = ["minialbert"]
    if evidence.distillation is not None:
        tags.append("distillation")
    if facts.sentence_embeddings:
        tags += ["sentence-transformers", "feature-extraction"]
    values["tags"] = tags
    if data_sets := _hub_data_sets(evidence.distillation):
        values["datasets"] = data_sets
    base = evidence.tuning.row.model if evidence.tuning is not None else _teacher(evidence.distillation)
    if (base_id := hub_id(base)) is not None:
        values["base_model"] = base_id
    if index := _model_index(evidence.results):
        values["model-index"] = [{"name": title, "results": index}]
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=110)


def _model_index(results: tuple[Result, ...]) -> list[dict[str, Any]]:
    """Return the figures of this model and of what was tuned from it, in the hub's form."""
    own = {result.task for result in results if result.what == THIS_MODEL}
    entries: dict[tuple[str, str], dict[str, Any]] = {}
    for result in results:
        if result.what == ITS_TEACHER or (result.what != THIS_MODEL and result.task in own):
            continue
        kind = {"token": "token-classification", "masked-lm": "fill-mask"}
        task = kind.get(result.problem, "text-classification")
        entry = entries.setdefault(
            (result.task, result.split),
            {"task": {"type": task}, "dataset": _dataset(result), "metrics": []},
        )
        metric, name = _METRICS.get(result.metric, (result.metric, result.metric))
        about = [] if result.what == THIS_MODEL else [result.what]
        about += [f"mean of {result.value.n} seeds"] if result.value.n > 1 else []
        name = f"{name} ({'; '.join(about)})" if about else name
        entry["metrics"].append({"type": metric, "value": round(result.value.mean, 6), "name": name})
    return list(entries.values())


def _dataset(result: Result) -> dict[str, str]:
    if result.problem == "masked-lm":
        return {"type": "held-out-windows", "name": "held-out windows of the training texts"}
    if result.task in GLUE_TASKS and result.problem != "token":
        return {
            "type": "glue",
            "config": result.task,
            "name": f"GLUE {GLUE_TASKS[result.task].folder}",
            "split": result.split,
        }
    task = public_name(result.task)
    return {
        "type": re.sub(r"[^\w.-]+", "-", task).strip("-") or "task",
        "name": task,
        "split": result.split,
    }


def _introduction(facts: ModelFacts, evidence: Evidence) -> str:
    _, _, what = _HEADS[facts.architecture]
    origin = ""
    if evidence.tuning is not None:
        origin = f", tuned from {escape(public_name(evidence.tuning.row.model))}"
    elif (teacher := _teacher(evidence.distillation)) is not None:
        origin = f", distilled from {escape(public_name(teacher))}"
    task = ""
    if facts.is_tuned and facts.task is not None and facts.task.task:
        task = f" Its task is {escape(public_name(facts.task.task))} ({escape(facts.task.problem)})."
    return (
        f"A MiniALBERT {what}{origin}: one shared block that is applied {facts.config.num_hidden_layers} times, with "
        f"embeddings of rank {facts.config.embedding_size}. The method is that of [Nouriborji et al., EACL 2023]"
        f"({PAPER_URL}).{task}\n"
    )


def _architecture(facts: ModelFacts) -> str:
    config = facts.config
    adapters = "none"
    if config.adapter_size is not None:
        norm = "with" if config.adapter_layer_norm else "without"
        adapters = (
            f"two per iteration, bottleneck {config.adapter_size}, {norm} LayerNorm "
            f"({facts.adapter_parameters:,} parameters)"
        )
    full = " (full rank)" if config.embedding_size == config.hidden_size else ""
    rows = [
        ("iterations of the shared block", str(config.num_hidden_layers)),
        ("hidden size", str(config.hidden_size)),
        ("rank of the embeddings", f"{config.embedding_size}{full}"),
        ("attention heads", str(config.num_attention_heads)),
        ("feed-forward size", str(config.intermediate_size)),
        ("adapters", adapters),
        ("vocabulary", f"{config.vocab_size:,}"),
        ("tokens per input, at most", str(facts.max_tokens)),
        ("parameters without the head", f"{facts.encoder_parameters:,}"),
        ("parameters", f"{facts.parameters:,}"),
    ]
    text = Table("", ("architecture", ""), tuple(rows)).to_markdown()
    if facts.is_tuned and facts.labels:
        shown = ", ".join(escape(label) for label in facts.labels[:_MOST_LABELS])
        rest = len(facts.labels) - _MOST_LABELS
        text += f"\nLabels: {shown}{f', and {rest} more' if rest > 0 else ''}\n"
    return f"## Architecture\n\n{text}"


def _distillation(record: Mapping[str, Any] | None) -> str:
    if record is None:
        return ""
    lines = []
    teacher = _teacher(record)
    if teacher is not None:
        size = look_up(record, "model", "teacher_encoder_parameters", kind=int)
        told = f" ({size:,} parameters without its head)" if size is not None else ""
        lines.append(f"Teacher: {escape(public_name(teacher))}{told}")
    else:
        lines.append("Teacher: none")
    if sources := _sources(record):
        lines.append(f"Texts: {escape(', '.join(sources))}")
    steps = look_up(record, "training", "steps", kind=int)
    if steps is not None:
        windows = look_up(record, "training", "windows", kind=int)
        length = look_up(record, "recipe", "data", "window_length", kind=int)
        told = f", {windows:,} windows" if windows is not None else ""
        told += f" of up to {length} tokens" if told and length is not None else ""
        lines.append(f"Steps: {steps:,}{told}")
    weights = [
        f"{label} {weight:g}"
        for key, label in _WEIGHTS.items()
        if (weight := look_up(record, "objective", key, kind=(int, float)))
    ]
    if weights:
        lines.append(f"Weights of the objective: {', '.join(weights)}")
    layers = look_up(record, "layer_map", kind=list) or []
    if layers and all(isinstance(layer, int) for layer in layers):
        lines.append(f"Layers of the teacher that the iterations follow: {', '.join(map(str, layers))}")
    seed = look_up(record, "seed", kind=int)
    if seed is not None:
        lines.append(f"Seed: {seed}")
    return "## Distillation\n\n" + "".join(f"- {line}\n" for line in lines)


def _tuning(facts: ModelFacts, evidence: Evidence) -> str:
    record = evidence.tuning
    if record is None:
        return ""
    mode = "all parameters" if record.row.mode == "full" else "the adapters and the head alone"
    lines = [f"Tuned: {mode} ({record.trainable_parameters:,} of {facts.parameters:,} parameters)"]
    if record.row.teacher is not None:
        lines.append(f"Teacher of the task: {escape(public_name(record.row.teacher))}")
    names = {"epochs": "epochs", "learning_rate": "learning rate", "batch_size": "batch size"}
    settings = {label: record.settings.get(f"tuning.{key}") for key, label in names.items()}
    lines += [
        f"{label.capitalize()}: {escape(str(value))}"
        for label, value in settings.items()
        if value is not None
    ]
    if record.seed is not None:
        lines.append(f"Seed: {record.seed}")
    return "## Fine-tuning\n\n" + "".join(f"- {line}\n" for line in lines)


def _results(evidence: Evidence) -> str:
    if not evidence.results:
        return ""
    rows = tuple(
        (
            result.what,
            public_name(result.task),
            result.split,
            _METRICS.get(result.metric, (result.metric, result.metric))[1],
            _shown(result.value),
            str(result.value.n),
        )
        for result in evidence.results
    )
    table = Table("", ("of", "task", "split", "metric", "value", "seeds"), rows)
    spread = any(result.value.sd is not None for result in evidence.results)
    note = "\n± is the sample standard deviation over seeds.\n" if spread else ""
    return f"## Results\n\n{table.to_markdown()}{note}"


def _shown(value: Cell) -> str:
    scale, digits, unit = (100, 1, " %") if value.percent else (1, 3, "")
    spread = "" if value.sd is None else f" ± {scale * value.sd:.{digits}f}"
    return f"{scale * value.mean:.{digits}f}{spread}{unit}"


def _usage(facts: ModelFacts, name: str) -> str:
    auto, pipeline_task, _ = _HEADS[facts.architecture]
    fewer = facts.config.num_hidden_layers - 1
    question = '"Where did the cat sit?", ' if pipeline_task == "question-answering" else ""
    shorter = [
        "A call may apply the block less often than the model was trained for: faster, and less exact.\n",
        _python(f"outputs = model(**inputs, num_iterations={fewer})"),
    ]
    if fewer < 1:
        shorter = []
    parts = [
        "## Usage\n\n`trust_remote_code=True` runs the two Python files of this repository. Read them, and give a "
        "`revision` to stay with what was read.\n",
        _python(f"""
            from transformers import {auto}, AutoTokenizer

            name = "{name}"
            tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=True)
            model = {auto}.from_pretrained(name, trust_remote_code=True)

            inputs = tokenizer({question}"The cat sat on the mat.", return_tensors="pt")
            outputs = model(**inputs)
        """),
        *shorter,
        "Where the package `minialbert` is installed, no remote code runs:\n",
        _python(f"""
            import minialbert
            from transformers import {auto}

            model = {auto}.from_pretrained("{name}")
        """),
        _pipeline(facts, pipeline_task, name),
    ]
    if facts.sentence_embeddings:
        parts += [
            "As a sentence encoder, the mean over tokens, with sentence-transformers:\n",
            _python(f"""
                from sentence_transformers import SentenceTransformer

                encoder = SentenceTransformer("{name}", trust_remote_code=True)
                vectors = encoder.encode(["The cat sat on the mat.", "A dog ran in the sun."])
            """),
        ]
    return "\n".join(part for part in parts if part)


def _pipeline(facts: ModelFacts, task: str, name: str) -> str:
    call, options = '"The cat sat on the mat."', ""
    if task == "fill-mask":
        if facts.mask_token is None:
            return ""
        call = '"The cat sat on the " + fill.tokenizer.mask_token + "."'
    elif task == "question-answering":
        return ""  # Transformers 5 has no such pipeline
    elif task == "token-classification":
        options = ', aggregation_strategy="simple"'
    variable = {"fill-mask": "fill", "feature-extraction": "extract"}.get(task, "classify")
    if variable == "classify" and facts.config.problem_type == "multi_label_classification":
        call += ", top_k=None"
    return _python(f"""
        from transformers import pipeline

        {variable} = pipeline("{task}", model="{name}", trust_remote_code=True{options})
        answers = {variable}({call})
    """)


def _python(code: str) -> str:
    lines = code.strip("\n").rstrip().splitlines()
    indent = len(lines[0]) - len(lines[0].lstrip())
    return "```python\n" + "".join(f"{line[indent:]}\n" for line in lines) + "```\n"


def _limitations(facts: ModelFacts, evidence: Evidence) -> str:
    lines = [
        "Smaller than its like, not faster: an iteration takes the time of a layer.",
        "Nothing but the figures above was measured; neither bias nor other languages and domains were."
        if evidence.results
        else "This card comes with no measured figures.",
    ]
    windows = look_up(evidence.distillation, "training", "windows", kind=int)
    if windows is not None:
        lines.append(
            f"It has the faults of its teacher and of the {windows:,} windows of text that it was distilled on."
        )
    if any(result.problem == "masked-lm" for result in evidence.results):
        lines.append("The held-out windows come from the same texts as the training windows.")
    if facts.sentence_embeddings:
        lines.append(
            "No training on pairs of sentences shaped its sentence vectors, and no figure here measures them."
        )
    if facts.is_tuned and facts.task is not None:
        lines.append(
            f"Longer inputs than {facts.task.max_length} tokens were cut, or read in windows, when tuning."
        )
    return "## Limitations\n\n" + "".join(f"- {line}\n" for line in lines)


def _sources(record: Mapping[str, Any] | None) -> list[str]:
    named = look_up(record, "data", "sources", kind=list) or []
    return [public_name(name) for name in named if isinstance(name, str) and name.strip()]


def _hub_data_sets(record: Mapping[str, Any] | None) -> list[str]:
    named = [name.removeprefix("hub:").split(":")[0] for name in _sources(record) if name.startswith("hub:")]
    return list(dict.fromkeys(named))


def _licence(license: str) -> str:
    files = (
        "" if license == "apache-2.0" else " The two Python files are part of minialbert, under apache-2.0."
    )
    return f"## Licence\n\n{escape(license)}.{files}\n"


def _teacher(record: Mapping[str, Any] | None) -> str | None:
    name = look_up(record, "model", "teacher", kind=str)
    return name if name and name.strip() else None
