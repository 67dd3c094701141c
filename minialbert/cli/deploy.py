"""The verb that takes a model out of the door: export, to ONNX or as a folder for the hub."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

from minialbert.cli.shared import JsonFlag, OverwriteFlag, interruptible, option, print_json, print_table, say
from minialbert.cli.tasks import TASK_HELP
from minialbert.errors import UserError

# What to export to, and how an ONNX graph is quantised.
Target = StrEnum("Target", ["onnx", "hub"])
Quantization = StrEnum("Quantization", {"int8": "int8", "int8_static": "int8-static"})


def export(
    model: Annotated[str, option("Directory (ONNX: or hub id) of the model.")],
    output: Annotated[Path, option("Folder to write.")],
    to: Annotated[Target, option("An ONNX graph, or the folder to upload to the hub.")] = Target.onnx,
    quantize: Annotated[
        Quantization | None, option("ONNX: int8, or int8-static, with activation ranges from --calibration.")
    ] = None,
    head: Annotated[
        str | None, option("ONNX: a head, or features for the bare encoder. Default: the model's own.")
    ] = None,
    opset: Annotated[int | None, option("ONNX: version of the operators, 18 to 23. Default: 23.")] = None,
    num_iterations: Annotated[int | None, option("ONNX: depth of the graph.")] = None,
    calibration: Annotated[
        Path | None, option("int8-static: your own texts (.txt, or a table with a text column).")
    ] = None,
    evaluate: Annotated[str | None, option(f"ONNX: score model and graph on a task. {TASK_HELP}")] = None,
    data: Annotated[str | None, option("ONNX: the data of --evaluate.")] = None,
    split: Annotated[str | None, option("ONNX: the split of --evaluate.")] = None,
    max_drop: Annotated[
        float | None, option("ONNX: points that the graph may score below the model. Default: 1.")
    ] = None,
    tolerance: Annotated[
        float | None, option("ONNX: largest difference, as a share of the largest output.")
    ] = None,
    records: Annotated[
        list[Path] | None, option("Hub: result.json files or folders of them, for the model card.")
    ] = None,
    license_: Annotated[str | None, option("Hub: licence. Default: apache-2.0.", "--license")] = None,
    language: Annotated[str | None, option("Hub: language of the model. Default: en.")] = None,
    repo_id: Annotated[str | None, option("Hub: OWNER/NAME, for card and upload.")] = None,
    push: Annotated[bool, option("Hub: upload the folder to --repo-id.", "--push")] = False,
    private: Annotated[bool, option("Hub: make a new repository private.", "--private")] = False,
    overwrite: OverwriteFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Export a model to an ONNX graph that was checked against it, or to a folder that the hub understands."""
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
    others = f"; {count} records are of other models" if (count := record["records_passed_over"]) else ""
    say(f"model card: {record['results']} measured results{others}")
    url = record["url"]
    say(f"uploaded to {url}" if url else "not uploaded: give --push and --repo-id for that")


def _print_export(record: dict[str, Any], output: Path) -> None:
    """Print size, proof and score of an export."""
    from minialbert.deploy.onnx.parity import parity_line

    depth = f", {record['iterations']} iterations" if record["iterations"] else ""
    say(
        f"{record['head']}, {record['precision']}{depth}: {record['bytes']:,} bytes, {record['bytes_of_model']:.3f} of "
        f"the model's {record['model']['bytes']:,}"
    )
    say(f"parity: {parity_line(record['parity'])}")
    if score := record["metrics"]:
        say(
            f"{score['task']} {score['split']}, {score['metric']}: {score['before']:.4f} before, {score['after']:.4f} "
            f"after ({-score['drop_points']:+.2f} points)"
        )
    say(f"folder: {output}")


def bench(
    models: Annotated[
        list[str],
        option(
            "Directory, hub id, config:FILE.json, or a shape: minialbert-128, minialbert-312, minialbert-768, "
            "distilbert, bert-base, albert-base, tinybert-4l-312, mobilebert. NAME=MODEL gives it a name, MODEL@K runs "
            "a MiniALBERT K iterations deep. May be repeated, or several with commas."
        ),
    ],
    engines: Annotated[
        list[str] | None,
        option(
            "torch-fp32, torch-bf16, torch-int8, onnx-fp32, onnx-int8; may be repeated, or several with "
            "commas. All when absent."
        ),
    ] = None,
    lengths: Annotated[
        list[str] | None, option("Tokens per input; may be repeated, or several with commas.")
    ] = None,
    batch_size: Annotated[int, option("Of the throughput; latency is at 1.")] = 32,
    repeats: Annotated[int, option("Timed runs of each cell, at most.")] = 15,
    seconds: Annotated[float, option("What they may take together; three run in any case.")] = 20.0,
    threads: Annotated[int | None, option("Of one run; torch's own number when absent.")] = None,
    seed: Annotated[int, option("Of random weights and inputs.")] = 0,
    no_memory: Annotated[bool, option("Leave peak memory out.", "--no-memory")] = False,
    output: Annotated[Path | None, option("Directory for result.json and table.md.")] = None,
    overwrite: OverwriteFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Measure size, memory, latency and throughput of models and engines on this machine."""
    from minialbert.deploy.bench import DEFAULT_LENGTHS, ENGINES, benchmark, tables

    with interruptible():
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
        print_table(part.header, part.rows, figures=2)
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
