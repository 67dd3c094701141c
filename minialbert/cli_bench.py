"""The verb that measures models and engines side by side: bench."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from .cli_shared import JsonFlag, OverwriteFlag, interruptible, out, print_json, quiet_transformers, say
from .errors import UserError


def bench(
    models: Annotated[
        list[str],
        typer.Option(
            help="Directory, hub id, config:FILE.json, or a shape: minialbert-128, minialbert-312, minialbert-768, "
            "distilbert, bert-base, albert-base, tinybert-4l-312, mobilebert. NAME=MODEL gives it a name, MODEL@K runs "
            "a MiniALBERT K iterations deep. May be repeated, or several with commas."
        ),
    ],
    engines: Annotated[
        list[str] | None,
        typer.Option(
            help="torch-fp32, torch-bf16, torch-int8, onnx-fp32, onnx-int8; may be repeated, or several with "
            "commas. All when absent."
        ),
    ] = None,
    lengths: Annotated[
        list[str] | None, typer.Option(help="Tokens per input; may be repeated, or several with commas.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Of the throughput; latency is at 1.")] = 32,
    repeats: Annotated[int, typer.Option(help="Timed runs of each cell, at most.")] = 15,
    seconds: Annotated[
        float, typer.Option(help="What they may take together; three run in any case.")
    ] = 20.0,
    threads: Annotated[int | None, typer.Option(help="Of one run; torch's own number when absent.")] = None,
    seed: Annotated[int, typer.Option(help="Of random weights and inputs.")] = 0,
    no_memory: Annotated[bool, typer.Option("--no-memory", help="Leave peak memory out.")] = False,
    output: Annotated[Path | None, typer.Option(help="Directory for result.json and table.md.")] = None,
    overwrite: OverwriteFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Measure size, memory, latency and throughput of models and engines on this machine."""
    quiet_transformers()
    from .benchmark import DEFAULT_LENGTHS, benchmark
    from .benchmark_engines import ENGINES
    from .benchmark_tables import tables

    with interruptible("the same command starts it again"):
        record = benchmark(
            _several(models),
            engines=ENGINES if engines is None else _several(engines),
            lengths=DEFAULT_LENGTHS if lengths is None else _numbers(_several(lengths)),
            batch_size=batch_size,
            repeats=repeats,
            seconds=seconds,
            threads=threads,
            seed=seed,
            memory=not no_memory,
            output=output,
            overwrite=overwrite,
            progress=not as_json,
        )
    if as_json:
        print_json(record)
        return
    for part in tables(record):
        say(part.title)
        table = Table(*part.header)
        for column in table.columns[2:]:
            column.justify = "right"
        for row in part.rows:
            table.add_row(*row)
        out.print(table)
    for note in record["notes"]:
        say(note)
    if output is not None:
        say(f"record in {output / 'result.json'}, tables in {output / 'table.md'}")


def _several(values: Sequence[str]) -> list[str]:
    """Split at commas what is not the path of something."""
    found = []
    for value in values:
        source = value.partition("=")[2].removeprefix("config:") or value.removeprefix("config:")
        is_path = any(Path(path).exists() for path in (value, source))
        found += [value] if is_path else [part.strip() for part in value.split(",") if part.strip()]
    return found


def _numbers(values: Sequence[str]) -> list[int]:
    try:
        return [int(value) for value in values]
    except ValueError:
        raise UserError(f"lengths: expected whole numbers, found {', '.join(values)}") from None
