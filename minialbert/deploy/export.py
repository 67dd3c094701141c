"""The verb `export`: a model as one ONNX file that was checked against it, or as a folder for the web or the hub."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from minialbert.errors import UserError, needs_extra
from minialbert.method.live import AnyModel, on_disk
from minialbert.runs.progress import speaking
from minialbert.runs.results import Result
from minialbert.tasks.evaluate import task_recipe
from minialbert.tasks.predict import read_inputs

_FOR_ONNX = (
    "quantize", "head", "opset", "num_iterations", "evaluate", "data", "split", "max_drop", "tolerance", "engine",
    "calibration",
)  # fmt: skip
_FOR_WEB = (*_FOR_ONNX[:-2], "vendor")
_FOR_HUB = ("records", "license", "language", "repo_id", "push", "private")


def export(
    model: AnyModel,
    output: str | Path,
    *,
    to: str = "onnx",
    quantize: str | None = None,
    engine: str | None = None,
    head: str | None = None,
    opset: int | None = None,
    num_iterations: int | None = None,
    calibration: str | Path | Iterable[str] | None = None,
    evaluate: str | None = None,
    data: str | Path | None = None,
    split: str | None = None,
    max_drop: float | None = None,
    tolerance: float | None = None,
    records: Sequence[Path] | None = None,
    license: str | None = None,
    language: str | None = None,
    vendor: str | Path | None = None,
    repo_id: str | None = None,
    push: bool | None = None,
    private: bool | None = None,
    tokenizer: Any = None,  # a name or a live one
    overwrite: bool = False,
    progress: bool = True,
) -> Result:
    """Export a model to an ONNX graph that was checked against it, or to a folder that the hub understands.

    Examples:
        >>> exported = minialbert.export("tuned/model", "exported", quantize="int8")
        >>> exported.record["precision"], (exported.path / "model.onnx").is_file()
        ('int8', True)

    Args:
        model: a directory or hub id, a live model, or the result of `distill` or `finetune`.
        output: the folder to write; it appears complete or not at all.
        to: "onnx", "hub", or "web" for a folder that a browser runs; it takes the options of ONNX too.
        quantize: ONNX: "int8"; "int4", int8 with matrices and lookup tables stored in 4 bits; "int8-dynamic" with
            activation ranges of a whole run; None for fp32 (web: for "int8").
        engine: ONNX: "onnx" for ONNX Runtime, or "openvino" for a graph that both engines run; its int8 has fixed
            activation ranges.
        head: ONNX: a head, or "features" for the bare encoder. Default: the model's own.
        opset: ONNX: version of the operators, 18 to 23.
        num_iterations: ONNX: depth of the graph.
        calibration: texts of your own, or a file of them, for the ranges of OpenVINO's int8.
        evaluate: ONNX: a task to score model and graph on.
        data: ONNX: the data of `evaluate`.
        split: ONNX: the split of `evaluate`.
        max_drop: ONNX: points (hundredths) that the graph may score below the model.
        tolerance: ONNX: largest difference, as a share of the largest output.
        records: hub: result.json files or folders of them, for the model card.
        license: hub: licence of the model.
        language: hub: language of the model.
        vendor: web: a folder `node_modules` with the JavaScript packages; without, that of the working directory.
        repo_id: hub: OWNER/NAME, for card and upload.
        push: hub: upload the folder to `repo_id`.
        private: hub: make a new repository private.
        tokenizer: of a live model.
        overwrite: replace an earlier export.
        progress: show lines.

    Returns:
        The record, and the folder.

    Raises:
        UserError: if the model, an option or the target is wrong, or the graph fails its check; nothing is written.
    """
    known = {*_FOR_ONNX, *_FOR_WEB, *_FOR_HUB}
    given = {name: value for name, value in locals().items() if name in known and value is not None}
    options = {"onnx": _FOR_ONNX, "web": _FOR_WEB, "hub": _FOR_HUB}
    if to not in options:
        raise UserError(f"to={to!r}: expected onnx, web or hub")
    misplaced = [name for name in given if name not in options[to]]
    if misplaced:
        told = ", ".join(f"--{name.replace('_', '-').replace('evaluate', 'task')}" for name in misplaced)
        raise UserError(f"{told}: no option of --to {to}")
    with speaking(progress), on_disk(model, tokenizer) as source:
        if to == "hub":
            from minialbert.deploy.hub import export_to_hub_folder

            record = export_to_hub_folder(source, output, overwrite=overwrite, **given)
        else:
            record = _to_onnx(source, output, given, overwrite=overwrite, web=to == "web")
    return Result(record, Path(output))


def _to_onnx(
    model: str, output: str | Path, given: dict[str, Any], *, overwrite: bool, web: bool
) -> dict[str, Any]:
    with needs_extra("export", "export to ONNX"):
        from minialbert.deploy.onnx.export import export_onnx
        from minialbert.deploy.web import export_to_web
    precision = given.pop("quantize", None if web else "fp32")
    if isinstance(texts := given.get("calibration"), str | Path):
        given["calibration"] = (str(row.text) for row in read_inputs([str(texts)], documents=None))
    task = given.pop("evaluate", None)
    lost = [f"--{name.replace('_', '-')}" for name in ("data", "split", "max_drop") if name in given]
    if lost and task is None:
        raise UserError(f"{', '.join(lost)}: only with --task TASK")
    if task is not None:
        given["task"], _, rows = task_recipe(task, given.pop("data", None), ())
        if rows is not None:
            raise UserError(
                "data: rows in memory cannot be scored here: give a directory, a file or hub:OWNER/NAME"
            )
    if precision is not None:
        given["precision"] = precision
    return (export_to_web if web else export_onnx)(model, output, overwrite=overwrite, **given)
