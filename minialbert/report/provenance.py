"""What made a report's records: commands without the paths of a machine, versions, machines."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..user_input import shown

_FILE_ENDINGS = (".yaml", ".yml", ".json", ".jsonl", ".csv", ".tsv", ".txt", ".gz", ".zst", ".parquet")
_HUB_OPTIONS = ("--model", "--teacher")  # take OWNER/NAME, which looks like a relative path


def command_lines(commands: Iterable[str]) -> tuple[str, ...]:
    """Return commands with placeholders for paths and seeds, each once.

    Args:
        commands: as records have them.

    Returns:
        A line per command, with its seeds in a comment.
    """
    found: dict[str, set[str]] = {}
    for one in commands:
        command, seeds = without_paths(one)
        found.setdefault(command, set()).update(seeds)
    lines = []
    for command in sorted(found):
        numbers = sorted(found[command], key=lambda seed: (len(seed), seed))
        lines.append(command + (f"  # SEED: {', '.join(numbers)}" if numbers else ""))
    return tuple(lines)


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


def made_with(records: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return versions, commits and machines of records.

    Args:
        records: the records.

    Returns:
        A line per package, one for the commits, one per machine.
    """
    versions: dict[str, set[str]] = {}
    commits: set[str] = set()
    machines: set[str] = set()
    for record in records:
        for package, version in (record.get("versions") or {}).items():
            versions.setdefault(str(package), set()).add(str(version))
        machine = record.get("machine") or {}
        machines.add(", ".join(str(machine[key]) for key in ("processor", "device") if machine.get(key)))
        if record.get("commit"):
            commits.add(str(record["commit"])[:12])
    lines = [f"{package} {', '.join(sorted(versions[package]))}" for package in sorted(versions)]
    lines += [f"commit {', '.join(sorted(commits))}"] if commits else []
    lines += [f"machine: {machine}" for machine in sorted(machines) if machine]
    return tuple(shown(line, 200) for line in lines)


__all__ = ["command_lines", "made_with", "without_paths"]
