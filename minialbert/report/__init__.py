"""Reports: many run records as one page of tables beside the paper's rows, with what made them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..errors import UserError
from ..runs import write_atomically
from .records import Cell, Record, find_records, group
from .tables import (
    Table,
    distillation_table,
    entity_table,
    escape,
    glue_table,
    ner_table,
    other_table,
)

__all__ = [
    "Cell",
    "Record",
    "Table",
    "distillation_table",
    "entity_table",
    "find_records",
    "glue_table",
    "group",
    "ner_table",
    "other_table",
    "write_report",
]

_FILE_ENDINGS = (".yaml", ".yml", ".json", ".jsonl", ".csv", ".tsv", ".txt", ".gz", ".zst", ".parquet")
_HUB_OPTIONS = ("--model", "--teacher")  # take OWNER/NAME, which looks like a relative path


def write_report(paths: Sequence[Path], output: Path | None = None) -> str:
    """Put all fine-tuning records below some paths on one Markdown page.

    Tables without a measured row are left out.

    Args:
        paths: records, run directories, or trees of them.
        output: a directory for `report.md` and one CSV file per table; reports of earlier calls in it are replaced.

    Returns:
        The page.

    Raises:
        UserError: if there is no fine-tuning record, if one cannot be used, or if `output` cannot be written.
    """
    records = find_records(paths)
    if not records:
        named = ", ".join(str(path) for path in paths)
        raise UserError(
            f"no fine-tuning record below {named}: run minialbert finetune, and name its output directory"
        )
    tables = {
        "glue": glue_table(records),
        "ner": ner_table(records),
        "entities": entity_table(records),
        "other": other_table(records),
        "distillation": distillation_table(records),
    }
    counted = [record for record in records if record.selected]
    parts = ["# Fine-tuning results\n"]
    parts += [f"## {table.title}\n\n{table.to_markdown()}" for table in tables.values() if table.rows]
    parts += [_commands(counted), _made_with(counted)]
    page = "\n".join(part for part in parts if part)
    if output is not None:
        _write(output, page, tables)
    return page


def _write(output: Path, page: str, tables: dict[str, Table]) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
        write_atomically(output / "report.md", page)
        for name, table in tables.items():
            file = output / f"{name}.csv"
            if table.rows:
                write_atomically(file, table.to_csv())
            else:  # of an earlier report, which report.md no longer shows
                file.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(
            f"{output} cannot be written ({error.strerror or error}): name a directory"
        ) from error


def _commands(records: Iterable[Record]) -> str:
    commands: dict[str, set[str]] = {}
    for record in records:
        if record.command is not None:
            command, seeds = without_paths(record.command)
            commands.setdefault(command, set()).update(seeds)
    if not commands:
        return ""
    lines = []
    for command in sorted(commands):
        seeds = sorted(commands[command], key=lambda seed: (len(seed), seed))
        lines.append(command + (f"  # SEED: {', '.join(seeds)}" if seeds else ""))
    fence = "`" * max([3, *(len(run) + 1 for line in lines for run in re.findall("`+", line))])
    return "\n".join(
        [
            "## Commands",
            "",
            "Words in capitals stand for paths and seeds.",
            "",
            f"{fence}sh",
            *lines,
            fence,
            "",
        ]
    )


def without_paths(command: str) -> tuple[str, list[str]]:
    """Put placeholders for a command's paths and its seed.

    Args:
        command: as a record has it.

    Returns:
        The command, and the values that stood for the seed.
    """
    plain = " ".join("".join(letter if letter.isprintable() else " " for letter in command).split())
    try:
        words = shlex.split(plain)
    except ValueError:  # a quote that is not closed
        words = plain.split()
    seeds: list[str] = []
    shown: list[str] = []
    option = ""
    for number, word in enumerate(words):
        name, equals, value = word.partition("=")
        if number == 0:
            shown.append(Path(word).name)
        elif equals and re.fullmatch(r"-{0,2}[\w.-]+", name):
            shown.append(f"{name}={_placeholder(value, name, seeds)}")
        elif word.startswith("-"):
            shown.append(word)
            option = word
            continue
        else:
            shown.append(_placeholder(word, option, seeds))
        option = ""
    return shlex.join(shown), seeds


def _placeholder(value: str, option: str, seeds: list[str]) -> str:
    name = option.lstrip("-").rpartition(".")[2].replace("-", "_").upper() or "PATH"
    if name == "SEED":
        seeds.append(value)
        return name
    return name if name == "OUTPUT" or _is_path(value, option) else value


def _is_path(value: str, option: str) -> bool:
    if value.startswith(("/", "~", "./", "../")) or "\\" in value or value.count("/") > 1:
        return True
    if "/" not in value or value.startswith("hub:"):
        return False
    return value.endswith(_FILE_ENDINGS) or (option.startswith("-") and option not in _HUB_OPTIONS)


def _made_with(records: Sequence[Record]) -> str:
    versions: dict[str, set[str]] = {}
    machines: dict[str, None] = {}
    for record in records:
        for package, version in record.versions.items():
            versions.setdefault(str(package), set()).add(str(version))
        parts = [record.machine.get("processor"), record.machine.get("device")]
        if machine := ", ".join(str(part) for part in parts if part):
            machines[machine] = None
    commits = sorted({record.commit[:12] for record in records if record.commit})
    lines = [f"{package} {', '.join(sorted(versions[package]))}" for package in sorted(versions)]
    lines += [f"commit {', '.join(commits)}"] if commits else []
    lines += [f"machine: {machine}" for machine in sorted(machines)]
    return "\n".join(["## Versions", "", *(f"- {escape(line)}" for line in lines), ""]) if lines else ""
