"""The verb that takes a model out of the door: export, to ONNX or as a folder for the web or the hub."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

from minialbert.cli.shared import (
    JsonFlag,
    OverwriteFlag,
    interruptible,
    leave_page,
    option,
    print_table,
    printed_json,
    say,
)
from minialbert.cli.tasks import TASK_HELP
from minialbert.errors import UserError

# What to export to, and how an ONNX graph is quantised.
Target = StrEnum("Target", ["onnx", "web", "hub"])
Quantization = StrEnum("Quantization", {"int8": "int8", "int4": "int4", "int8_dynamic": "int8-dynamic"})
Engine = StrEnum("Engine", ["onnx", "openvino"])


def export(
    model: Annotated[str, option("Directory of the model; for ONNX also a hub id.")],
    output: Annotated[Path, option("Folder to write.")],
    to: Annotated[
        Target, option("An ONNX graph, a folder for a web server, or one for the hub.")
    ] = Target.onnx,
    quantize: Annotated[
        Quantization | None, option("How weights are stored (default: fp32; --to web: int8).")
    ] = None,
    engine: Annotated[
        Engine | None, option("openvino: a graph for OpenVINO and ONNX Runtime; int8 has fixed ranges.")
    ] = None,
    calibration: Annotated[
        Path | None, option("Texts that set the ranges of OpenVINO's int8, .txt or a table.")
    ] = None,
    head: Annotated[str | None, option("Head to export; features: the encoder without one.")] = None,
    num_iterations: Annotated[int | None, option("Depth of the graph (default: all).")] = None,
    opset: Annotated[int | None, option("ONNX opset, 18 to 23 (default: 23).")] = None,
    tolerance: Annotated[float | None, option("Largest difference, as a share of the outputs.")] = None,
    task: Annotated[str | None, option(f"Task to score model and graph on. {TASK_HELP}")] = None,
    data: Annotated[str | None, option("Labelled data for --task.")] = None,
    split: Annotated[str | None, option("Split of that data.")] = None,
    max_drop: Annotated[float | None, option("Points that the graph may lose (default: 1).")] = None,
    vendor: Annotated[
        Path | None, option("--to web: node_modules with the packages (default: here).")
    ] = None,
    repo_id: Annotated[str | None, option("OWNER/NAME, for card and upload.")] = None,
    push: Annotated[bool, option("Upload the folder to --repo-id.", "--push")] = False,
    private: Annotated[bool, option("Make a new repository private.", "--private")] = False,
    license_: Annotated[str | None, option("Licence (default: apache-2.0).", "--license")] = None,
    language: Annotated[str | None, option("Language of the model (default: en).")] = None,
    records: Annotated[list[Path] | None, option("Records for the model card.")] = None,
    overwrite: OverwriteFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Export a model to ONNX, to a web page, or for the hub.

    The ONNX graph is checked against the model before it is written.

    minialbert export --model tuned/model --quantize int8 --output exported/
    minialbert export --model tuned/model --quantize int8 --task ner --data my-ner/ --output exported/
    minialbert export --model tuned/model --to web --output site/
    minialbert export --model tuned/model --to hub --repo-id OWNER/NAME --records tuned/ --output hub/
    """
    from minialbert.deploy.export import export as run

    again = "with --overwrite" if push else "nothing was written;"  # uploading comes after writing
    with interruptible(f"{again} the same command starts it again"):
        record = run(
            model, output, to=to.value, quantize=quantize.value if quantize else None,
            engine=engine.value if engine else None, head=head, opset=opset, num_iterations=num_iterations,
            calibration=calibration, evaluate=task, data=data, split=split, max_drop=max_drop, tolerance=tolerance,
            records=records, license=license_, language=language, vendor=vendor, repo_id=repo_id, push=push or None,
            private=private or None, overwrite=overwrite, progress=not as_json,
        ).record  # fmt: skip
    if printed_json(record, as_json):
        return
    if to is Target.hub:
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
    if errors := record.get("errors_by_iteration"):
        told = ", ".join(f"{100 * error:.2g} %" for error in errors)
        say(f"error of the hidden states after each iteration, against fp32: {told}")
    if score := record["metrics"]:
        say(
            f"{score['task']} {score['split']}, {score['metric']}: {score['before']:.4f} before, {score['after']:.4f} "
            f"after ({-score['drop_points']:+.2f} points)"
        )
    if web := record.get("web"):
        say(f"a browser loads {web['bytes']:,} bytes, or {web['gzip']:,} where the server compresses (gzip)")
        say(f"look at it: python -m http.server -d {output}")
    say(f"folder: {output}")


def bench(
    model: Annotated[
        list[str],
        option(
            "Directory, exported folder, hub id, config:FILE.json, or a shape: minialbert-128, minialbert-312, "
            "minialbert-768, distilbert, bert-base, albert-base, tinybert-4l-312, tinybert-6l-768, minilm-l6-h384, "
            "mobilebert, static-256 (a linear layer on the mean of token vectors). "
            "NAME=MODEL names it in the tables, MODEL@K runs K iterations. May be repeated or separated by commas."
        ),
    ],
    engines: Annotated[
        list[str] | None,
        option(
            "torch-fp32, torch-bf16, torch-int8, onnx-fp32, onnx-int8, openvino-fp32, openvino-bf16, openvino-int8, "
            "native-int8 (default: these, if installed), onnx-int8-dynamic; may be repeated or separated by commas."
        ),
    ] = None,
    lengths: Annotated[list[str] | None, option("Tokens per input, as in 16,128.")] = None,
    batch_size: Annotated[int, option("Inputs per pass for throughput (latency: 1).")] = 32,
    repeats: Annotated[int, option("Most turns per cell.")] = 15,
    seconds: Annotated[float, option("Time budget per cell in seconds (at least 3 turns).")] = 20.0,
    threads: Annotated[int | None, option("CPU threads (default: PyTorch's).")] = None,
    seed: Annotated[int, option("Random seed for weights and inputs.")] = 0,
    output: Annotated[Path | None, option("Folder for result.json and table.md.")] = None,
    overwrite: OverwriteFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Measure size, memory and speed of models on this machine.

    minialbert bench --model minialbert-128,distilbert --engines torch-fp32,onnx-int8 --lengths 16,128
    minialbert bench --model tuned/model --output bench/
    """
    from minialbert.deploy.bench import DEFAULT_ENGINES, DEFAULT_LENGTHS, benchmark, machine_line, tables
    from minialbert.report.tables import show

    with interruptible():
        record = benchmark(
            _several(model), engines=DEFAULT_ENGINES if engines is None else _several(engines),
            lengths=DEFAULT_LENGTHS if lengths is None else _numbers(_several(lengths)), batch_size=batch_size,
            repeats=repeats, seconds=seconds, threads=threads, seed=seed, output=output, overwrite=overwrite,
            progress=not as_json,
        )  # fmt: skip
    if printed_json(record, as_json):
        return
    say(machine_line(record))
    for part in tables(record):
        say(part.title)
        print_table(part.columns, [[show(value) for value in row] for row in part.rows], figures=2)
    for note in record["notes"]:
        say(note)
    if output is not None:
        say(f"record in {output / 'result.json'}, tables in {output / 'table.md'}")
        leave_page(output)


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


def trim(
    model: Annotated[str, option("Directory or hub id of a model with a WordPiece tokenizer.")],
    corpus: Annotated[list[str], option("Texts whose tokens stay: files, folders, globs; may be repeated.")],
    output: Annotated[Path, option("Folder for the smaller model.")],
    keep: Annotated[int | None, option("Most tokens to keep (default: all that occur).", min=1)] = None,
    min_count: Annotated[int, option("How often a token must occur.", min=1)] = 1,
    text_field: Annotated[str, option("Column of the text in tables.", "--column")] = "text",
    overwrite: OverwriteFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Cut a model's vocabulary down to the tokens of some texts.

    Texts whose tokens all stay get exactly the same hidden states.

    minialbert trim --model tuned/model --corpus my-texts/ --output trimmed/
    minialbert trim --model tuned/model --corpus notes.csv --column note --keep 8000 --output trimmed/
    """
    from minialbert.deploy.trim import trim as run

    with interruptible("nothing was written; the same command starts it again"):
        record = run(
            model, corpus, output, keep=keep, min_count=min_count, text_field=text_field, overwrite=overwrite,
            progress=not as_json,
        ).record  # fmt: skip
    if printed_json(record, as_json):
        return
    before, after = record["parameters_before"], record["parameters"]
    say(f"{after:,} of {before:,} parameters ({after / before:.0%}); model and tokenizer in {output}")
    say(f"next: minialbert export --model {output} --quantize int8 --output exported/")
