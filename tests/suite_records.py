"""A small suite, and made-up records of its cells."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from minialbert.experiments.suite.cells import Cell, expand, recipe_of
from minialbert.experiments.suite.schema import Suite

DEFINITION: dict[str, Any] = {
    "name": "trial",
    "teachers": ["main", "other"],
    "corpora": {"text": "corpus.txt"},
    "tasks": {
        "king": {"name": "classification", "data": "king", "label": "King", "chance": 50},
        "river": {"name": "classification", "data": "river", "label": "River"},
    },
    "modes": {
        "full": {"label": "full", "settings": {"tuning.epochs": 1, "tuning.batch_size": 32}},
        "adapters": {"label": "adapters †", "marks": "†", "recipe": "adapters"},
    },
    "rows": {
        "teacher": {"teacher": "main"},
        "small": {"recipe": "tiny", "teacher": "main", "corpus": "text"},
        "plain": {
            "recipe": "tiny",
            "settings": {"student.adapter_reduction_factor": None},
            "teacher": "main",
            "corpus": "text",
        },
        "start": {"recipe": "tiny", "distilled": False, "teacher": "main", "corpus": "text"},
        "foreign": {"recipe": "tiny", "teacher": "other", "corpus": "text"},
    },
    "groups": [
        {"name": "core", "cells": ["small", "plain", "small/adapters"], "tasks": ["king"], "seeds": [1, 2, 3]},
        {"name": "more", "cells": ["teacher", "small", "start"], "tasks": ["king", "river"], "seeds": [1, 2]},
        {"name": "far", "cells": ["foreign"], "tasks": ["river"], "seeds": [1]},
    ],
    "tables": [
        {
            "name": "first",
            "title": "First",
            "paper": "glue",
            "tasks": ["king", "river"],
            "reference": "teacher",
            "rows": [
                {"of": "teacher", "paper": "BERT-base"},
                {"of": "small", "printed": "-1.5"},
                {"of": "small/adapters", "paper": "MiniALBERT_128, adapters"},
            ],
        }
    ],
    "claims": [
        {
            "name": "one",
            "text": "Small beats plain.",
            "paper": "79.92 against 74.10",
            "comparisons": [
                {"a": "small", "b": "plain", "tasks": ["king"]},
                {"a": "teacher", "b": "start", "tasks": ["king", "river"], "counts": False, "label": "beside"},
            ],
        },
        {
            "name": "two",
            "text": "Adapters are faster.",
            "comparisons": [
                {"a": "small/adapters", "b": "small", "tasks": ["king"], "figure": "step-time", "exceeds": 20}
            ],
        },
    ],
    "reach": {"of": "small", "against": "teacher", "beside": ["start"], "tasks": ["king", "river"], "share": 93},
}  # fmt: skip


def make_suite(**changes: Any) -> Suite:
    return Suite.model_validate(json.loads(json.dumps({**DEFINITION, **changes})))


def write_suite(path: Path, **changes: Any) -> Path:
    values = json.loads(json.dumps({**DEFINITION, **changes}))  # no object in two places: aliases are refused
    path.write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")
    return path


def cell_named(suite: Suite, name: str) -> Cell:
    return next(cell for cell in expand(suite) if cell.name == name)


def record_of(suite: Suite, name: str, score: float = 0.5, **changes: Any) -> dict[str, Any]:
    """Return a record as the worker of a cell leaves it; `score` is a fraction."""
    cell = cell_named(suite, name)
    recipe = recipe_of(suite, cell, None)
    common: dict[str, Any] = {
        "format_version": 1,
        "recipe": recipe.model_dump(),
        "model": {"name": cell.row, "encoder_parameters": 1_234_567},
        "versions": {"torch": "2.13"},
        "machine": {"processor": "Some CPU", "device": "cpu"},
        "commit": "0123456789abcdef",
    }
    if cell.is_distillation:
        distilled = suite.rows[cell.row].distilled
        end = {"mlm_accuracy": score, "mlm_loss": 5.0, "output_kl": 1.5, "cosine_1": 0.5, "cosine_2": 0.75}
        return common | {
            "kind": "distillation" if distilled else "initialisation",
            "metrics": {"student_end" if distilled else "student_start": end},
            "training": {"steps": 4 if distilled else 0, "wall_seconds": 40.0, "tokens_per_second": 2048.0},
            **changes,
        }
    return common | {
        "kind": "finetune",
        "metric": "accuracy",
        "split": "test",
        "score": score,
        "training": {"steps": 5, "wall_seconds": 10.0, "seconds_per_step": 1.0},
        **changes,
    }


def write_record(folder: Path, suite: Suite, name: str, score: float = 0.5, **changes: Any) -> Path:
    target = folder / "cells" / name / "result.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(record_of(suite, name, score, **changes)), encoding="utf-8")
    return target
