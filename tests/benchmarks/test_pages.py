"""Pages and tables beside records are those that their makers make from these records today."""

from __future__ import annotations

import importlib
import json
from functools import partial
from pathlib import Path

import pytest

from minialbert.deploy import bench
from minialbert.report.tables import TABLES
from minialbert.runs.records import find_records

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "results"


def read(file):
    return json.loads(file.read_text(encoding="utf-8"))


def of_record(home, maker, name="result.json", key=None, verb="table"):
    record = read(home / name)
    return getattr(maker, verb)(record if key is None else record[key])


def of_bench(home, _):
    """A record from before ceilings were measured has tables alone."""
    record = read(home / "result.json")
    if "ceilings" in record:
        return bench.as_markdown(record)
    return "\n".join(f"**{bench.escape(one.title)}**\n\n{one.to_markdown()}" for one in bench.tables(record))


def of_emulation(home, maker):
    record = read(home / "result.json")
    return maker.table(record["rows"], record["processors"])


def of_elastic_runs(home, maker):
    """The table of its record, and the record of its runs."""
    found = maker.read(home, RESULTS / "task-distillation" / "two-million-tokens")
    tasks = {name: maker.summarise(pairs) for name, pairs in sorted(found.items()) if pairs}
    made, record = {"tasks": tasks, "mean": maker.mean_of_tasks(tasks)}, read(home / "result.json")
    assert json.loads(json.dumps(made)) == {name: record[name] for name in made}
    return maker.table(record)


def of_main_job(home, maker):
    return maker.page({name: read(home / name / "result.json") for name in maker.RUNS})


def of_comparison(home, maker):
    one, other = home / "svd-distilled", RESULTS / "block-start" / "mean-distilled" / "distill"
    return maker.report([one, other], compare=True)


def of_report(home, maker):
    return maker.report(home)


def of_table(home, _, name):
    return TABLES[name](find_records([home])).to_csv()


own = partial(of_record, verb="page")
# By file under results/: the script or module that makes it, and how its text comes from the records beside it.
PAGES = {
    **{
        f"{name}/README.md": (name.replace("-", "_"), lambda _, maker: maker.page())
        for name in (
            "four-bits", "optimiser", "rare-types", "regression-start", "task-distillation", "tuning-rate",
            "without-gold",
        )
    },
    **{
        f"{name}/table.md": (name.replace("-", "_"), of_record)
        for name in (
            "cold-start", "matrix-products", "native-profile", "onnx-kernels", "padding", "service-costs",
            "web-answers", "web-page",
        )
    },
    **{
        f"distillation-step/{name}/table.md": ("distillation_step", of_record)
        for name in ("paper-8x256", "paper-8x256-amd", "small-16x128", "small-16x128-amd")
    },
    **{f"{name}/table.md": ("early_exit_time", of_record) for name in ("early-exit", "early-exit-0.25")},
    **{
        f"{name}/table.md": (None, of_bench)
        for name in ("bench", "bench-512", "bench-bf16", "bench-busy", "miniature/bench")
    },
    "rare-types/table.md": ("rare_types", lambda _, maker: maker.table()),
    "without-gold/table.md": ("without_gold", lambda _, maker: maker.table()),
    **{f"soak/{name}/table.md": ("soak", partial(of_record, name="soak.json")) for name in ("demo", "long")},
    **{f"{name}/report.md": ("minialbert", of_report) for name in ("tasks", "block-start")},
    **{
        f"{folder}/{name}.csv": (None, partial(of_table, name=name))
        for folder in ("tasks", "block-start")
        for name in ("entities", "glue", "ner")
    },
    "bf16-attention/README.md": ("attention_precision", own),
    "block-start/matching.md": ("word_matching", partial(of_record, name="matching.json", key="models")),
    "decoding/table.md": ("decoding", partial(of_record, key="models")),
    "distillation-step/memory/table.md": ("distillation_memory", of_record),
    "elastic/table.md": ("elastic_table", of_elastic_runs),
    "emulation/table.md": ("emulated", of_emulation),
    "low-rank-start/compare.md": ("minialbert", of_comparison),
    "low-rank-start/table.md": ("low_rank_start", partial(of_record, key="ranks")),
    "nncf/table.md": ("nncf_int8", of_record),
    "main-job/README.md": ("main_job_table", of_main_job),
    "serving/table.md": ("serve_load", of_record),
    "sharing/README.md": ("sharing_screening", lambda _, maker: maker.page()),
    "tuning-step/README.md": ("tuning_step", own),
    "weight-noise/table.md": ("weight_noise", partial(of_record, key="metrics")),
}  # fmt: skip
# What no maker makes, and why. test_results_page.py holds the pages and tables of the miniature.
OTHERS = {
    **dict.fromkeys(
        (
            "boxed", "decoding", "early-exit", "elastic", "embeddings", "export", "low-rank-start",
            "tasks",
        ),
        "says how the records were made",
    ),
    **dict.fromkeys(("block-start", "miniature", "soak"), "test_quoted_figures.py has its figures"),
}  # fmt: skip
WITHOUT_RECORD = dict.fromkeys(
    (f"distillation-step/profile-{name}/table.md" for name in ("fp32", "bf16")), "a profile is printed alone"
)


@pytest.fixture
def script(monkeypatch):
    """Return a script of benchmarks, or a module, by its name, at home where it is run."""
    monkeypatch.chdir(ROOT)
    for folder in ("pages", "quality", "speed"):
        monkeypatch.syspath_prepend(ROOT / "benchmarks" / folder)
    return importlib.import_module


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_made_from_its_records(name, script):
    maker, made = PAGES[name]
    file = RESULTS / name
    text = made(file.parent, maker and script(maker))
    assert file.read_text(encoding="utf-8").rstrip("\n") == text.rstrip("\n"), f"make results/{name} again"


def test_no_page_or_table_is_without_its_test():
    found = {
        file.relative_to(RESULTS).as_posix()
        for kind in ("md", "csv")
        for file in RESULTS.rglob(f"*/*.{kind}")
    }
    known = {*PAGES, *WITHOUT_RECORD, *(f"{name}/README.md" for name in OTHERS)}
    assert known <= found
    assert {name for name in found - known if Path(name).parent != Path("miniature")} == set()
