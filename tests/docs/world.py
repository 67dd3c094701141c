"""What the pages take for granted: a hub cache with tiny models under real names, folders of data, programs on PATH.

Everything is made on the spot, in seconds. Texts are Python's own help topics; the tokenizer is a real WordPiece,
learnt from them, and the models have random weights.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import warm
from blocks import ROOT

# What `minialbert` commands of other pages have left, for pages that begin with a model: made once, then copied.
_MADE = """
minialbert prepare --corpus my-texts/ --tokenizer bert-base-uncased --output windows/
minialbert distill --teacher bert-base-uncased --data windows/ --output run/
minialbert finetune --model run/model --task ner --data my-ner/ --output tuned/ --adapters
"""
_SENTENCES = (
    "A mutation that causes {} was found.", "The patient was treated for {} in the spring.",
    "There was no sign of {}.", "Both parents had {}, and the child was well.",
)  # fmt: skip
_DISEASES = ("cystic fibrosis", "breast cancer", "asthma", "Wilson disease", "acute renal failure", "gout")


@dataclass(frozen=True)
class World:
    """A folder with data and programs, and the server behind these.

    Attributes:
        folder: `data/` is what every page finds in its folder; `made/` what earlier pages leave.
        environment: of every block.
        socket: where the server listens.
        groups: process groups of the blocks so far.
    """

    folder: Path
    environment: dict[str, str]
    socket: Path
    groups: list[int] = field(default_factory=list)

    def page_folder(self, name: str, made: Sequence[str] = ()) -> Path:
        """Return a new folder with the data, and some of what earlier pages leave."""
        folder = self.folder / "pages" / name
        shutil.copytree(self.folder / "data", folder, symlinks=True)
        for one in made:
            shutil.copytree(self.made() / one, folder / one)
        return folder

    def made(self) -> Path:
        """Return the folder of what earlier pages leave, which is filled at the first call."""
        folder = self.folder / "made"
        if not folder.exists():
            shutil.copytree(self.folder / "data", folder, symlinks=True)
            self.bash(_MADE, folder)
        return folder

    def bash(self, code: str, folder: Path, *, seconds: float = 240) -> str:
        """Run a block as a script that ends at the first mistake; returns what it printed."""
        printed = folder / ".printed"
        with printed.open("wb") as output:  # a pipe would wait for what a block leaves running
            script = subprocess.Popen(
                ["bash", "-euo", "pipefail", "-c", code], cwd=folder, env=self.environment,
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        self.groups.append(script.pid)
        status: int | str = "none: it did not end"
        with contextlib.suppress(subprocess.TimeoutExpired):
            status = script.wait(seconds)
        text = printed.read_text(encoding="utf-8", errors="replace")
        if status:
            raise RuntimeError(f"exit status {status}\n{code}\n{text[-4000:]}")
        return text

    def end_blocks(self) -> None:
        """End what blocks left running."""
        while self.groups:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.groups.pop(), signal.SIGKILL)


@contextlib.contextmanager
def a_world(folder: Path) -> Iterator[World]:
    """A world in an empty folder, whose server ends with the block."""
    home, programs, data = folder / "home", folder / "bin", folder / "data"
    for new in (home, programs, data):
        new.mkdir(parents=True)
    socket = folder / "warm"
    for name in ("minialbert", "minialbert-runtime", "python", "python3"):
        (programs / name).write_text(warm.program(socket), encoding="utf-8")
        (programs / name).chmod(0o755)
    for name in ("pip", "make", "torchrun", "accelerate", "docker"):  # of such blocks the page says why not
        (programs / name).write_text(
            f"#!/bin/sh\necho {name}: not here: mark the block as not run >&2\nexit 1\n"
        )
        (programs / name).chmod(0o755)
    environment = {
        "PATH": os.pathsep.join([str(programs), str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": str(ROOT / "tests" / "docs" / "short"),
        "HOME": str(home), "HF_HOME": str(home / "hf"), "HF_HUB_OFFLINE": "1", "LANG": "C.UTF-8", "COLUMNS": "120",
        "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "WANDB_MODE": "offline", "MPLBACKEND": "agg",
    }  # fmt: skip
    _write_hub(home / "hf")
    _write_data(data, programs)
    server = subprocess.Popen(
        [sys.executable, str(Path(warm.__file__)), str(socket)], env=environment, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert server.stdout is not None and "ready\n" in server.stdout, "the server did not start"
        world = World(folder, environment, socket)
        yield world
        world.end_blocks()
    finally:
        server.kill()
        server.communicate()


def _topics() -> list[str]:
    from pydoc_data.topics import topics

    return [
        "\n".join(line for line in text.splitlines() if line.strip()) for _, text in sorted(topics.items())
    ]


def _write_hub(home: Path) -> None:
    """Write the cache that the hub's client would have after a download of each model that pages name."""
    import torch
    from tokenizers.implementations import BertWordPieceTokenizer
    from transformers import AutoTokenizer, BertConfig, BertForMaskedLM, BertTokenizerFast
    from transformers.utils import logging

    logging.disable_progress_bar()
    words = BertWordPieceTokenizer()
    words.train_from_iterator([*_topics(), *_texts()], vocab_size=2000, show_progress=False)
    tokenizer = BertTokenizerFast(tokenizer_object=words._tokenizer, model_max_length=512)

    def snapshot(repo: str) -> Path:
        cached = home / "hub" / f"models--{repo.replace('/', '--')}"
        (cached / "refs").mkdir(parents=True)
        (cached / "refs" / "main").write_text("0" * 40)
        (cached / "snapshots" / ("0" * 40)).mkdir(parents=True)
        return cached / "snapshots" / ("0" * 40)

    torch.manual_seed(0)
    bert = snapshot("bert-base-uncased")
    sizes = {"hidden_size": 128, "num_attention_heads": 4, "intermediate_size": 128, "num_hidden_layers": 12}
    BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(bert)
    tokenizer.save_pretrained(bert)
    release = snapshot("nlpie/miniALBERT-128")
    fixtures = ROOT / "tests" / "fixtures"
    shutil.copytree(fixtures / "release" / "adapter-factorised" / "student-mlm", release, dirs_exist_ok=True)
    AutoTokenizer.from_pretrained(fixtures / "tiny-tokenizer").save_pretrained(release)
    _write_glue(home)


def _write_glue(home: Path) -> None:
    """Write the cache that `datasets` would have after a download of SST-2."""
    import datasets

    datasets.disable_progress_bars()
    rows = [{"sentence": text, "label": label, "idx": at} for at, (text, label) in enumerate(_films())]
    label = datasets.ClassLabel(names=["negative", "positive"])
    features = datasets.Features(
        {"sentence": datasets.Value("string"), "label": label, "idx": datasets.Value("int32")}
    )
    folder = home / "datasets" / "nyu-mll___glue" / "sst2" / "0.0.0" / ("0" * 40)
    folder.mkdir(parents=True)
    splits: dict[str, Any] = {}
    for split, part in {"train": rows[:32], "validation": rows[32:48], "test": rows[48:]}.items():
        unlabelled = [row | {"label": -1} for row in part] if split == "test" else part
        one = datasets.Dataset.from_list(unlabelled, features=features)
        with datasets.arrow_writer.ArrowWriter(
            path=str(folder / f"glue-{split}.arrow"), features=features
        ) as writer:
            writer.write_table(one.data.table)
            writer.finalize()
        splits[split] = {"name": split, "num_examples": len(part), "dataset_name": "glue"}
    names = {"builder_name": "parquet", "dataset_name": "glue", "config_name": "sst2"}
    version = {"version_str": "0.0.0", "major": 0, "minor": 0, "patch": 0}
    info = names | {"splits": splits, "version": version, "features": features.to_dict()}
    (folder / "dataset_info.json").write_text(json.dumps(info))


def _films() -> list[tuple[str, int]]:
    """Return 64 sentences of films, and 1 for praise."""
    drawn = random.Random(0)
    praise, blame = ("a fine", "a great", "a lovely"), ("a dull", "a poor", "a tired")
    kinds = ("film", "story", "comedy", "play")
    return [
        (f"this is {drawn.choice(praise if at % 2 else blame)} {drawn.choice(kinds)} number {at}", at % 2)
        for at in range(64)
    ]


def _texts() -> list[str]:
    """Return 64 sentences with a disease."""
    return [
        _SENTENCES[at % len(_SENTENCES)].format(_DISEASES[at // len(_SENTENCES) % len(_DISEASES)])
        for at in range(64)
    ]


def _tagged(text: str) -> str:
    """Return a sentence as a word and its tag a line."""
    words = text.replace(".", " .").replace(",", " ,").split()
    tags = ["O"] * len(words)
    for disease in _DISEASES:
        parts = disease.split()
        for at in range(len(words)):
            if words[at : at + len(parts)] == parts:
                tags[at : at + len(parts)] = ["B-Disease", *["I-Disease"] * (len(parts) - 1)]
    return "".join(f"{word}\t{tag}\n" for word, tag in zip(words, tags, strict=True))


def _pubtator(number: int, text: str) -> str:
    """Return a text as a title in PubTator's format, with its diseases."""
    lines = [f"{number}|t|{text}", f"{number}|a|"]
    for disease in _DISEASES:
        if (start := text.find(disease)) >= 0:
            lines.append(f"{number}\t{start}\t{start + len(disease)}\t{disease}\tDisease")
    return "\n".join([*lines, "", ""])


def _write_data(folder: Path, programs: Path) -> None:
    """Write the folders and files that pages name without making them, in the shapes that docs/data.md describes."""
    topics = _topics()
    for name, part in {"my-texts": topics[:24], "shard-1": topics[24:36], "shard-2": topics[36:48]}.items():
        (folder / name).mkdir()
        (folder / name / "topics.txt").write_text("\n\n".join(part) + "\n", encoding="utf-8")
    texts = _texts()
    for name in ("my-ner", "their-ner"):
        (folder / name).mkdir()
        for split, part in {"train": texts[:40], "dev": texts[40:52], "test": texts[52:]}.items():
            (folder / name / f"{split}.tsv").write_text("\n".join(map(_tagged, part)), encoding="utf-8")
    corpus = "".join(_pubtator(number, text) for number, text in enumerate(texts, start=1))
    (folder / "corpus.pubtator").write_text(corpus, encoding="utf-8")
    (folder / "glue" / "RTE").mkdir(parents=True)
    for split, count in {"train": 24, "dev": 12, "test": 12}.items():
        lines = ["index\tsentence1\tsentence2" + ("" if split == "test" else "\tlabel")]
        for at, (text, label) in enumerate(_films()[:count]):
            told = "" if split == "test" else "\t" + ("entailment" if label else "not_entailment")
            lines.append(f"{at}\t{text}\tIt is good.{told}")
        (folder / "glue" / "RTE" / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    (folder / "notes").mkdir()
    for at, text in enumerate(texts[:3]):
        (folder / "notes" / f"{at}.txt").write_text(text + "\n")
    (folder / "notes.txt").write_text("\n".join(texts[:4]) + "\n")
    shutil.copy(folder / "notes.txt", folder / "texts.txt")
    shutil.copy(folder / "notes.txt", folder / "my-texts.txt")
    rows = "".join(f'{at},"{text}"\n' for at, text in enumerate(texts[:4]))
    (folder / "table.csv").write_text("id,report\n" + rows)
    service = folder / "service" / "bin"  # an environment that has the runtime
    service.mkdir(parents=True)
    for name in ("python", "minialbert-runtime"):
        (service / name).symlink_to(programs / name)
