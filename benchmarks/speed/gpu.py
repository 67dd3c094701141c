"""What a GPU does with this project, in at most eight minutes: correctness, a distillation step, a run, inference.

    benchmarks/speed/gpu.sh [results/gpu]        (PyTorch with CUDA, Triton and Transformers are there; no network)

What else is missing is named before anything starts, with the command that fetches it elsewhere into `wheels/`.

Four parts, each a process of its own with a limit, so that one that fails leaves the others:

- kernels: the Triton kernels of attention against the plain formula in fp64, and the tests marked gpu.
- step: one distillation step at the paper's geometry, batch 192 of 256 tokens: the release's way, ours in bf16, and
  compiled, with memory and the share of the bf16 rate that this card reaches in plain products.
- run: a real distillation, once without a break and once killed and resumed; their weights must be equal.
- inference: student and BERT-base, fp32, bf16 and int8 (the rest of it bf16), 32 texts of 128 tokens.

`gpu.json` and `table.md` say from which card and versions each figure is. `--small` tries all parts on a CPU, in ten
times the time.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

HERE = Path(__file__).parent
LIMITS = {"kernels": 90, "step": 150, "run": 170, "inference": 60}  # seconds; 470 in all
# What this project and its tests import beside PyTorch and Transformers; the first is fetched with what it needs, which
# only fits in one version.
NEEDED = (
    "pydantic", "accelerate", "datasets", "dill", "hypothesis", "jinja2", "multiprocess", "pandas", "pyarrow", "pytest",
    "pytest_timeout", "requests", "rich", "triton", "typer", "xxhash", "yaml",
)  # fmt: skip


def check_packages(names: tuple[str, ...] = NEEDED) -> None:
    """End with the commands that fetch what is missing, on a machine with a network."""
    missing = [name.replace("_", "-") for name in names if find_spec(name) is None]
    if missing:
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        fetch = f"  pip download -c constraints.txt --only-binary=:all: --python-version {version} -d wheels"
        alone = [name for name in missing if name != "pydantic"]
        lines = [f"{fetch} pydantic"] * ("pydantic" in missing)
        lines += [f"{fetch} --no-deps {' '.join(alone)}"] * bool(alone)
        told = "run this where there is a network, and copy wheels/ here"
        raise SystemExit("\n".join([f"missing here: {', '.join(missing)}; {told}:", *lines]))


def command(*parts: object, limit: float, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run this Python with arguments, and return what it printed."""
    line = [sys.executable, *map(str, parts)]
    return subprocess.run(line, capture_output=True, text=True, timeout=limit, **options)


def kernels(small: bool, limit: float) -> dict[str, Any]:
    """Return what the tests of the kernels, and those marked gpu, said last."""
    tests = HERE.parents[1] / "tests/method"
    files = tests / "fast/test_rows_triton.py", tests / "test_trainer_gpu.py"
    ran = command("-m", "pytest", "-q", "-m", "not slow and not docs", *files, limit=limit)
    return {
        "passed": ran.returncode == 0 and " passed" in ran.stdout,
        "said": ran.stdout.strip().splitlines()[-1:],
    }


def step(small: bool, limit: float) -> dict[str, Any]:
    """Return the record of `distillation_step.py`."""
    shape = (
        ["--geometry", "small", "--batch", 2, "--length", 32] if small else ["--batch", 192, "--length", 256]
    )
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "record.json"
        modes = ["--modes", "bf16"] if small else ["--modes", "bf16", "compiled-bf16"]
        ran = command(
            HERE / "distillation_step.py", *shape, *modes, "--repeats", 3, "--json", target, limit=limit
        )
        if ran.returncode:
            raise RuntimeError(ran.stderr[-1500:])
        return {"table": ran.stdout, **json.loads(target.read_text(encoding="utf-8"))}


def run(small: bool, limit: float) -> dict[str, Any]:
    """Return the speed of a distillation and how far one that was killed and resumed ends from it."""
    from safetensors.torch import load_file

    steps, batch = (12, 4) if small else (160, 96)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_inputs(folder, small)
        options = [
            "-m", "minialbert", "distill", "--recipe", "small", "--teacher", folder / "teacher",
            "--data", folder / "windows",
            "--steps", steps, "--batch-size", batch, "--precision", "bf16", "--set", "training.warmup_steps=2",
            "--set", f"training.save_steps={steps // 4}", "--set", "training.eval_steps=100000",
            "--set", f"training.micro_batch_size={batch}",
        ]  # fmt: skip
        started = time.perf_counter()
        whole = command(*options, "--output", folder / "whole", limit=limit / 2)
        if whole.returncode:
            raise RuntimeError(whole.stderr[-1500:])
        seconds = time.perf_counter() - started
        killed = subprocess.Popen(
            [sys.executable, *map(str, options), "--output", str(folder / "killed")],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        until = time.perf_counter() + limit / 4
        while not list((folder / "killed").glob("checkpoints/*")) and time.perf_counter() < until:
            time.sleep(0.2)
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        again = command(*options, "--output", folder / "killed", "--resume", limit=limit / 2)
        if again.returncode:
            raise RuntimeError(again.stderr[-1500:])
        one, other = (
            load_file(folder / kind / "model" / "model.safetensors") for kind in ("whole", "killed")
        )
        record = json.loads((folder / "whole" / "result.json").read_text(encoding="utf-8"))
    return {
        "steps": steps,
        "wall_seconds": round(seconds, 1),
        "tokens_per_second": record["training"]["tokens_per_second"],
        "largest_difference_after_resume": max(float((one[key] - other[key]).abs().max()) for key in one),
    }


def write_inputs(folder: Path, small: bool) -> None:
    """Write windows of Python's own documentation, and a teacher of random weights with a vocabulary for it."""
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

    from minialbert import prepare
    from minialbert.experiments.demo.text import python_texts

    texts = [one.text for one in python_texts()[0]][: 40 if small else None]
    trained = BertWordPieceTokenizer()
    trained.train_from_iterator(texts, vocab_size=2000 if small else 8000, show_progress=False)
    trained.save(str(folder / "tokenizer.json"))
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("unk", "sep", "pad", "cls", "mask")}
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), **special)
    width, layers = (128, 6) if small else (768, 12)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=width, num_hidden_layers=layers, num_attention_heads=width // 64 or 1,
        intermediate_size=4 * width,
    )  # fmt: skip
    torch.manual_seed(0)
    BertForMaskedLM(config).save_pretrained(folder / "teacher")
    tokenizer.save_pretrained(folder / "teacher")
    prepare(texts, str(folder / "teacher"), str(folder / "windows"), recipe="small")


class Int8Linear(nn.Module):
    """A linear layer in int8, a scale for each output of its weights and for each row of what comes in."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.scales = linear.weight.abs().amax(dim=1).float() / 127  # (N,)
        self.weight = (linear.weight.float() / self.scales[:, None]).round().to(torch.int8)
        self.bias = linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return what the layer makes of (..., K), as (..., N)."""
        rows = x.reshape(-1, x.shape[-1])
        scales = rows.abs().amax(dim=1, keepdim=True).float().clamp(min=1e-12) / 127
        product = torch._int_mm((rows / scales).round().to(torch.int8), self.weight.T)
        result = (product * scales * self.scales).to(x.dtype)
        return (result if self.bias is None else result + self.bias).view(*x.shape[:-1], -1)


def in_int8(model: nn.Module) -> nn.Module:
    """Return a model with its linear layers in int8, in place; a shared one is converted once."""
    made: dict[nn.Module, Int8Linear] = {}
    for module in [*model.modules()]:
        for name, child in [*module._modules.items()]:  # all, and not each child once
            if isinstance(child, nn.Linear):
                made.setdefault(child, Int8Linear(child))
                setattr(module, name, made[child])
    return model


def inference(small: bool, limit: float) -> dict[str, Any]:
    """Return texts per second by model and precision, and how close hidden states are to those of fp32."""
    from transformers import BertConfig, BertModel

    from minialbert import MiniAlbertConfig, MiniAlbertModel

    device = "cpu" if small else "cuda"
    ids = torch.randint(1000, 30000, (2, 16) if small else (32, 128), device=device)
    shape = (
        {"hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 256, "embedding_size": 32}
        if small
        else {}
    )
    models: dict[str, nn.Module] = {
        "MiniALBERT-128, 6 iterations": MiniAlbertModel(MiniAlbertConfig(**{"embedding_size": 128, **shape})),
        "BERT-base": BertModel(
            BertConfig(**{key: value for key, value in shape.items() if key != "embedding_size"})
        ),
    }
    ways: dict[str, Callable[[nn.Module], nn.Module]] = {
        "fp32": lambda model: model.to(device), "bf16": lambda model: model.to(torch.bfloat16), "int8": in_int8,
    }  # fmt: skip
    speed, cosines = {}, {}
    for name, model in models.items():
        states: list[torch.Tensor] = []
        with torch.inference_mode():
            for way, convert in ways.items():
                encoder = convert(model.eval())
                states.append(encoder(ids).last_hidden_state.float().flatten(0, 1))
                seconds = timed(lambda encoder=encoder: encoder(ids), 3 if small else 50, device)
                speed[f"{name}, {way}"] = round(len(ids) / seconds)
                cosines[f"{name}, {way}"] = float(torch.cosine_similarity(states[-1], states[0]).mean())
    return {"texts_per_second": speed, "mean_cosine_to_fp32": cosines}


def timed(function: Callable[[], Any], repeats: int, device: str) -> float:
    """Return the median seconds of a call."""
    taken = []
    for _ in range(repeats + 3):
        started = time.perf_counter()
        function()
        if device == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken[3:])


def lines(record: dict[str, Any]) -> str:
    """Return the record as Markdown."""
    parts = record["parts"]
    versions = ", ".join(f"{name} {value}" for name, value in record["versions"].items())
    text = [f"{record['card']}; {versions}.", ""]
    text += [f"- {name}: failed, {part['failed']}" for name, part in parts.items() if "failed" in part]
    if "passed" in (found := parts["kernels"]):
        text.append(f"- kernels: {'right' if found['passed'] else 'WRONG'} ({' '.join(found['said'])})")
    if "steps" in (found := parts["run"]):
        text.append(
            f"- run: {found['tokens_per_second'] or 0:,.0f} tokens/s; killed and resumed, weights differ by at most "
            f"{found['largest_difference_after_resume']:.1e}"
        )
    found = parts["inference"]
    text += [
        f"- inference, {name}: {value:,} texts/s, mean cosine to fp32 {found['mean_cosine_to_fp32'][name]:.4f}"
        for name, value in found.get("texts_per_second", {}).items()
    ]
    return "\n".join([*text, "", parts["step"].get("table", "")])


def main() -> None:
    """Run the parts, and write what they found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--part", choices=LIMITS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    limits = {name: limit * (10 if given.small else 1) for name, limit in LIMITS.items()}
    if given.part:
        part = {"kernels": kernels, "step": step, "run": run, "inference": inference}[given.part]
        sys.stdout.write(f"\n{json.dumps(part(given.small, limits[given.part]))}\n")
        return
    check_packages(tuple(name for name in NEEDED if not (given.small and name == "triton")))
    if not torch.cuda.is_available() and not given.small:
        raise SystemExit("no GPU is found here; --small tries the script on a CPU")
    given.output.mkdir(parents=True, exist_ok=True)
    import transformers

    record: dict[str, Any] = {
        "kind": "gpu",
        "card": torch.cuda.get_device_name() if torch.cuda.is_available() else "a CPU, small shapes",
        "versions": {
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "transformers": transformers.__version__,
        },
        "parts": {},
    }
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    for name, limit in limits.items():
        options = ["--small"] * given.small
        started = time.perf_counter()
        try:
            ran = command(
                __file__, "--output", given.output, "--part", name, *options, limit=limit, env=environment
            )
            answer = (
                json.loads(ran.stdout.splitlines()[-1])
                if ran.returncode == 0
                else {"failed": ran.stderr.strip().splitlines()[-1:]}
            )
        except subprocess.TimeoutExpired:
            answer = {"failed": f"took more than {limit} s"}
        record["parts"][name] = answer | {"seconds": round(time.perf_counter() - started, 1)}
        # What is there is kept, whatever comes next.
        (given.output / "gpu.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        sys.stdout.write(f"{name}: {record['parts'][name]['seconds']} s\n")
    (given.output / "table.md").write_text(lines(record) + "\n", encoding="utf-8")
    sys.stdout.write(lines(record) + "\n")


if __name__ == "__main__":
    main()
