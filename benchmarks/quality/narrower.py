"""A student with fewer units in its feed-forward network: those that move its output most on text.

    python benchmarks/quality/narrower.py MODEL TEXTS 640 OUTPUT      TEXTS: a file with one text a line

What stays is fitted to what the whole network gave on 2,000 of the texts, in all iterations, by least squares. The
narrower student is where a distillation starts (`student.init=checkpoint`), not where it ends.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import torch
from transformers import AutoTokenizer

from minialbert import MiniAlbertConfig, MiniAlbertForMaskedLM
from minialbert.method.start import fewer_units

TEXTS, LENGTH = 2000, 128


@torch.no_grad()
def main(name: str, texts: str, units: str, output: str) -> None:
    """Write the narrower student."""
    tokenizer, model = AutoTokenizer.from_pretrained(name), MiniAlbertForMaskedLM.from_pretrained(name).eval()
    lines = Path(texts).read_text(encoding="utf-8").splitlines()
    seen: list[torch.Tensor] = []
    model.minialbert.block.ffn_output.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    rows = []
    for text in random.Random(0).sample(lines, TEXTS):
        model.minialbert(**tokenizer(text, truncation=True, max_length=LENGTH, return_tensors="pt"))
        rows += [states[0] for states in seen]
        seen.clear()
    block, active = model.minialbert.block, torch.cat(rows)
    kept, fitted = fewer_units(active, block.ffn_output.weight, int(units))
    fitted = fitted.float()
    config = MiniAlbertConfig.from_pretrained(name, intermediate_size=int(units))
    weights = model.state_dict()
    of_block = "minialbert.block."
    weights[of_block + "ffn.weight"] = block.ffn.weight[kept]
    weights[of_block + "ffn.bias"] = block.ffn.bias[kept]
    weights[of_block + "ffn_output.weight"] = fitted[:-1].T.contiguous()
    weights[of_block + "ffn_output.bias"] = block.ffn_output.bias + fitted[-1]
    narrower = MiniAlbertForMaskedLM(config)
    narrower.load_state_dict(weights)
    narrower.save_pretrained(output)
    tokenizer.save_pretrained(output)


if __name__ == "__main__":
    main(*sys.argv[1:])
