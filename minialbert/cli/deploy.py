"""The verb that takes a model out of the door: export, to ONNX or as a folder for the hub."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from minialbert.cli.shared import (
    JsonFlag,
    OverwriteFlag,
    interruptible,
    out,
    print_json,
    quiet_transformers,
    say,
)
from minialbert.cli.tasks import TASK_HELP
from minialbert.errors import UserError

# What to export to, and how an ONNX graph is quantised.
Target = StrEnum("Target", ["onnx", "hub"])
Quantization = StrEnum("Quantization", {"int8": "int8", "int8_static": "int8-static"})


def export(
    model: Annotated[str, typer.Option(help="Directory (ONNX: or hub id) of the model.")],
    output: Annotated[Path, typer.Option(help="Folder to write.")],
    to: Annotated[
        Target, typer.Option(help="An ONNX graph, or the folder to upload to the hub.")
    ] = Target.onnx,
    quantize: Annotated[
        Quantization | None,
        typer.Option(help="ONNX: int8, or int8-static, with activation ranges from --calibration."),
    ] = None,
    head: Annotated[
        str | None,
        typer.Option(help="ONNX: a head, or features for the bare encoder. Default: the model's own."),
    ] = None,
    opset: Annotated[
        int | None, typer.Option(help="ONNX: version of the operators, 18 to 23. Default: 23.")
    ] = None,
    num_iterations: Annotated[int | None, typer.Option(help="ONNX: depth of the graph.")] = None,
    calibration: Annotated[
        Path | None, typer.Option(help="int8-static: your own texts (.txt, or a table with a text column).")
    ] = None,
    evaluate: Annotated[
        str | None, typer.Option(help=f"ONNX: score model and graph on a task. {TASK_HELP}")
    ] = None,
    data: Annotated[str | None, typer.Option(help="ONNX: the data of --evaluate.")] = None,
    split: Annotated[str | None, typer.Option(help="ONNX: the split of --evaluate.")] = None,
    max_drop: Annotated[
        float | None, typer.Option(help="ONNX: points that the graph may score below the model. Default: 1.")
    ] = None,
    tolerance: Annotated[
        float | None, typer.Option(help="ONNX: largest difference, as a share of the largest output.")
    ] = None,
    records: Annotated[
        list[Path] | None, typer.Option(help="Hub: result.json files or folders of them, for the model card.")
    ] = None,
    license_: Annotated[
        str | None, typer.Option("--license", help="Hub: licence. Default: apache-2.0.")
    ] = None,
    language: Annotated[str | None, typer.Option(help="Hub: language of the model. Default: en.")] = None,
    repo_id: Annotated[str | None, typer.Option(help="Hub: OWNER/NAME, for card and upload.")] = None,
    push: Annotated[bool, typer.Option("--push", help="Hub: upload the folder to --repo-id.")] = False,
    private: Annotated[bool, typer.Option("--private", help="Hub: make a new repository private.")] = False,
    overwrite: OverwriteFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Export a model to an ONNX graph that was checked against it, or to a folder that the hub understands."""
    quiet_transformers()
    from minialbert.deploy.export import export as run

    with interruptible("nothing was written; the same command starts it again"):
        record = run(
            model, output, to=to.value, quantize=quantize.value if quantize else None, head=head, opset=opset,
            num_iterations=num_iterations, calibration=calibration, evaluate=evaluate, data=data, split=split,
            max_drop=max_drop, tolerance=tolerance, records=records, license=license_, language=language,
            repo_id=repo_id, push=push or None, private=private or None, overwrite=overwrite, progress=not as_json,
        ).record  # fmt: skip
    if as_json:
        print_json(record)
    elif to is Target.hub:
        _print_hub(record, output)
    else:
        _print_export(record, output)


def _print_hub(record: dict[str, Any], output: Path) -> None:
    say(f"{record['architecture']}, {record['parameters']:,} parameters: {len(record['files'])} files, "
        f"{record['bytes']:,} bytes in {output}")  # fmt: skip
    say(f"model card: {record['results']} measured results" + _passed_over(record))
    say(
        f"uploaded to {record['url']}"
        if record["url"]
        else "not uploaded: give --push and --repo-id for that"
    )


def _passed_over(record: dict[str, Any]) -> str:
    count = record["records_passed_over"]
    return f"; {count} records are of other models" if count else ""


def _print_export(record: dict[str, Any], output: Path) -> None:
    """Print size, proof and score of an export."""
    from minialbert.deploy.onnx.parity import parity_line

    depth = f", {record['iterations']} iterations" if record["iterations"] else ""
    say(
        f"{record['head']}, {record['precision']}{depth}: {record['bytes']:,} bytes, {record['bytes_of_model']:.3f} of "
        f"the model's {record['model']['bytes']:,}"
    )
    say(f"parity: {parity_line(record['parity'])}")
    score = record["metrics"]
    if score:
        say(
            f"{score['task']} {score['split']}, {score['metric']}: {score['before']:.4f} before, {score['after']:.4f} "
            f"after ({-score['drop_points']:+.2f} points)"
        )
    say(f"folder: {output}")


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
    from minialbert.deploy.bench import DEFAULT_LENGTHS, ENGINES, benchmark, tables

    with interruptible("the same command starts it again"):
        record = benchmark(
            _several(models), engines=ENGINES if engines is None else _several(engines),
            lengths=DEFAULT_LENGTHS if lengths is None else _numbers(_several(lengths)), batch_size=batch_size,
            repeats=repeats, seconds=seconds, threads=threads, seed=seed, memory=not no_memory, output=output,
            overwrite=overwrite, progress=not as_json,
        )  # fmt: skip
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
