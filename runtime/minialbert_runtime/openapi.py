"""What the service says about itself, in the words of OpenAPI 3.1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from . import __version__
from .limits import Limits

_REFUSALS = {
    400: "The body is not JSON in UTF-8.",
    404: "There is no model of that name.",
    408: "The body did not arrive in time.",
    413: "The body has too many bytes.",
    422: "The fields, the number of texts, or a text are not what the model takes.",
    429: "Too many requests are waiting.",
    500: "The model could not be run.",
    503: "There was no answer in time, or the service is stopping or full.",
}
_LABEL_AND_SCORE = {"label": {"type": ["string", "null"]}, "score": {"type": "number"}}
_RESULT = {
    "type": "object",
    "description": "One text's answer. Offsets count characters (Unicode code points), and `end` is exclusive.",
    "properties": {
        "id": {"description": "The id of the document, where it has one."},
        "text": {"type": "string"},
        "pair": {"type": "string"},
        "entities": {
            "description": "Of a tagger.",
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "start": {"type": "integer"},
                    "end": {"type": "integer"},
                    "text": {"type": "string"},
                    **_LABEL_AND_SCORE,
                },
            },
        },
        **_LABEL_AND_SCORE,
        "labels": {"description": "Of a multi-label model.", "type": "array", "items": {"type": "string"}},
        "scores": {"type": "object", "additionalProperties": {"type": "number"}},
        "vector": {"type": "array", "items": {"type": "number"}},
        "windows": {"description": "In how many windows a long text was read.", "type": "integer"},
        "cut": {"description": "How many tokens were not read.", "type": "integer"},
    },
}


def document(limits: Limits, names: Sequence[str]) -> dict[str, Any]:
    """Return the description of a service with such limits and models of these names."""
    text = {"type": "string", "maxLength": limits.max_characters}
    model = {"type": "string", "enum": list(names), "default": names[0], "description": "The model's name."}
    pair = {"type": "array", "items": text, "minItems": 2, "maxItems": 2}
    parts = {"id": {}, "text": text, "pair": text}
    one = {"type": "object", "required": ["text"], "properties": parts, "additionalProperties": False}

    def some(items: dict[str, Any], what: str) -> dict[str, Any]:
        return {"type": "array", "items": items, "maxItems": limits.max_texts, "description": what}

    predict = {
        "model": model,
        "texts": some(text, "Texts, or give pairs or documents."),
        "pairs": some(pair, "Pairs of texts, for a model that was tuned on pairs."),
        "documents": some(one, "Texts with ids, which their results repeat."),
    }
    embed = {
        "model": model,
        "texts": some(text, "Texts."),
        "prompt": {"type": "string", "description": "The name of a prompt of the model, or its text."},
        "dim": {"type": "integer", "minimum": 1, "description": "So many leading dimensions."},
        "normalize": {
            "type": "boolean",
            "description": "Vectors of length one, where the model gives others.",
        },
    }
    vector = {"type": "array", "items": {"type": "number"}}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "minialbert-runtime",
            "version": __version__,
            "description": f"At most {limits.max_bytes:,} bytes a request, and {limits.seconds:g} seconds.",
        },
        "paths": {
            "/predict": {
                "post": _asking(
                    "Classes, scores or entities of texts, pairs or documents (one of the three)",
                    predict,
                    {"texts": ["A mutation that causes cystic fibrosis was found."]},
                    ("results", {"type": "array", "items": _RESULT}),
                )
            },
            "/embed": {
                "post": _asking(
                    "Vectors of texts, by a sentence encoder",
                    embed,
                    {"texts": ["A text."]},
                    ("vectors", {"type": "array", "items": vector}),
                )
            },
            "/models": _get("The models, with their labels and what their versions are made of"),
            "/healthz": _get("Whether the process answers"),
            "/readyz": _get("Whether requests are taken now; 503 if not"),
            "/metrics": _get("Counts for Prometheus", "text/plain"),
            "/openapi.json": _get("This document"),
            "/docs": _get("This document, to read", "text/html"),
            "/": _get("A page to try a model on a text", "text/html"),
        },
    }


def _asking(
    summary: str, fields: dict[str, Any], example: dict[str, Any], answer: tuple[str, dict[str, Any]]
) -> dict[str, Any]:
    asked = {"type": "object", "properties": fields, "additionalProperties": False}
    name, content = answer
    version = {"type": "object", "properties": {"name": {"type": "string"}, "version": {"type": "string"}}}
    answered = {
        "type": "object",
        "properties": {name: content, "model": version, "request_id": {"type": "string"}},
    }
    error = {"type": "object", "properties": {"error": {"type": "string"}, "request_id": {"type": "string"}}}
    responses = {"200": {"description": "The answers, in order.", "content": _json(answered)}}
    responses |= {str(code): {"description": why, "content": _json(error)} for code, why in _REFUSALS.items()}
    body = {"required": True, "content": {"application/json": {"schema": asked, "example": example}}}
    return {"summary": summary, "requestBody": body, "responses": responses}


def _get(summary: str, kind: str = "application/json") -> dict[str, Any]:
    return {
        "get": {"summary": summary, "responses": {"200": {"description": summary, "content": {kind: {}}}}}
    }


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}
