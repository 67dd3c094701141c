"""How well an exported masked LM, with a smaller vocabulary, predicts the masked words that its student was scored on.

    python benchmarks/quality/masked_words.py RUN WINDOWS TRIMMED EXPORTED RECORD.json

RUN is what `distill` wrote, WINDOWS its data, TRIMMED its student after `trim`, EXPORTED the folder made of that. The
held-out windows and masks are those of RUN's own figures; here the student runs in fp32. A token that was trimmed is
read as unknown, and where it was masked, the trimmed models are wrong.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from minialbert_runtime.folder import MODEL_FILE
from torch.utils.data import DataLoader

from minialbert.data.masking import MaskedLanguageModelCollator
from minialbert.data.tokenizers import load_tokenizer
from minialbert.data.window_store import WindowDataset
from minialbert.method.encoders import load_encoder
from minialbert.method.trainer import _evenly_spread
from minialbert.recipes.load import load_recipe
from minialbert.runs.records import load_record, write_result
from minialbert.tasks.exported import OnnxEncoder


@torch.inference_mode()
def main(run: Path, windows: Path, trimmed: Path, exported: Path, record: Path) -> None:
    """Score the three on the same masks, and write the record."""
    recipe, tokenizer = load_recipe(str(run / "recipe.yaml")), load_tokenizer(windows / "tokenizer")
    masked = MaskedLanguageModelCollator(
        tokenizer, mask_probability=recipe.data.mask_probability, whole_word=recipe.data.whole_word_masking,
        seed=recipe.training.seed,
    )  # fmt: skip
    held_out = _evenly_spread(WindowDataset([windows], "held_out"), recipe.training.eval_windows)
    smaller = load_tokenizer(trimmed)
    assert smaller.get_vocab() == load_tokenizer(exported).get_vocab()
    places = torch.full((len(tokenizer),), smaller.unk_token_id)
    kept = smaller.get_vocab()
    for token, old in tokenizer.get_vocab().items():
        places[old] = kept.get(token, smaller.unk_token_id)
    student, less = (load_encoder(one).model for one in (run / "model", trimmed))
    models = {"student": student, "trimmed": less, "graph": OnnxEncoder(exported / MODEL_FILE, less.config)}
    right, count, lost = dict.fromkeys(models, 0), 0, 0
    for batch in DataLoader(held_out, batch_size=16, collate_fn=masked, shuffle=False):
        chosen = batch["labels"] != -100
        labels, ids = batch["labels"][chosen], batch["input_ids"]
        gone = places[labels] == smaller.unk_token_id
        count, lost = count + len(labels), lost + int(gone.sum())
        for name, model in models.items():
            whole = name == "student"
            guessed = model(ids if whole else places[ids], batch["attention_mask"]).logits[chosen].argmax(-1)
            hits = guessed == labels if whole else (guessed == places[labels]) & ~gone
            right[name] += int(hits.sum())
    facts = load_record(exported / "result.json")
    written = write_result(
        record,
        {
            "kind": "masked-words", "precision": facts["precision"], "bytes": facts["bytes"],
            "windows": len(held_out), "masked_tokens": count, "of_trimmed_tokens": lost,
            "accuracy": {name: hits / count for name, hits in right.items()},
            "accuracy_in_distillation": load_record(run / "result.json")["metrics"]["student_end"]["mlm_accuracy"],
        },
    )  # fmt: skip
    sys.stdout.write(f"{written['accuracy']} of {count:,}, {lost} of trimmed tokens\n")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
