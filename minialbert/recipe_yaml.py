"""YAML as recipes need it: safe, `5e-4` a number, no key twice, and line numbers for messages."""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import yaml

from minialbert.errors import UserError

MAX_BYTES = 1_000_000


class _Loader(yaml.SafeLoader):
    """Plain scalars, lists and mappings only; YAML 1.2 floats; duplicate keys refused."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key.value!r} appears twice", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


# PyYAML follows YAML 1.1, which reads 5e-4 (no dot, or no sign in the exponent) as text.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+|\d+\.\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def read_yaml(path: Path) -> tuple[dict[Hashable, Any], yaml.Node]:
    """Returns the mapping that a YAML file holds, and its node tree.

    Args:
        path: the file, UTF-8, at most 1 MB.

    Returns:
        The values, and the nodes in which `line_of` finds a key.

    Raises:
        UserError: if the file is missing, no regular file, too large, not UTF-8, not YAML, empty, or holds
            anything but a mapping of plain values.
    """
    try:
        if path.is_dir():
            raise UserError(f"{path}: is a directory; name a YAML file in it")
        if path.exists() and not path.is_file():
            raise UserError(f"{path}: is not a regular file")
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{path}: is larger than {MAX_BYTES} bytes, which no recipe is")
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: cannot be read ({error})") from None
    values, node = _parse(text, str(path))
    if node is None:
        raise UserError(f"{path}: is empty; `minialbert recipes show default` prints a complete recipe")
    if not isinstance(values, dict):
        raise UserError(f"{path}: should hold a mapping (key: value), got a {type(values).__name__}")
    return values, node


def read_yaml_value(text: str, source: str) -> Any:
    """Returns one YAML scalar or list, as given on a command line.

    Args:
        text: the value, as in `4`, `5e-4`, `null` or `[2, 4, 6]`.
        source: what to call it in messages.

    Returns:
        The value as a Python object.

    Raises:
        UserError: if it is empty, a mapping, or no YAML.
    """
    value, node = _parse(text, source)
    if node is None or isinstance(value, dict):
        raise UserError(f"{source}: takes one value or a list (null clears it), got {text!r}")
    return value


def line_of(node: yaml.Node | None, path: Sequence[int | str]) -> int | None:
    """Returns the line (from 1) on which a key stands, or None if it is not in the file.

    Args:
        node: the root from `read_yaml`, or None.
        path: keys and list positions from the root.

    Returns:
        The line number of the key or list entry.
    """
    line = None
    for part in path:
        if isinstance(node, yaml.MappingNode):
            found = [(key, value) for key, value in node.value if getattr(key, "value", None) == part]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            found = [(node.value[part], node.value[part])]
        else:
            found = []
        if not found:
            return None
        key, node = found[0]
        line = key.start_mark.line + 1
    return line


def _parse(text: str, source: str) -> tuple[Any, yaml.Node | None]:
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            return (None if node is None else loader.construct_document(node)), node
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{source}{where}: {error.problem or error.context}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{source}: is not YAML ({str(error).splitlines()[0]})") from None
    except RecursionError:
        raise UserError(f"{source}: is nested too deeply") from None
