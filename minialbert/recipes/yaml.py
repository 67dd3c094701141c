"""YAML as recipes need it: safe and small, `5e-4` a number, no key twice, and line numbers for messages."""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import yaml

from minialbert.errors import UserError, one_line, quoted, shown

MAX_BYTES = 100_000
# No number of a recipe is longer; spelled in hexadecimal it could be one that takes minutes to print.
_MAX_DIGITS = 100
_MAX_DEPTH = 20
_MARKS = re.compile(r"[,;:|/\\&#+*!?%@>=-]+")


class _Loader(yaml.SafeLoader):
    """Plain scalars, lists and mappings only; YAML 1.2 floats; duplicate keys, aliases and other types refused."""

    _depth = 0
    close = yaml.SafeLoader.dispose

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        # A few lines of aliases to aliases stand for more values than any memory holds.
        if self.check_event(yaml.AliasEvent):
            event = self.get_event()
            alias = quoted(f"*{event.anchor}")
            raise _refused(f"the alias {alias} is not allowed: write the value out", event.start_mark)
        if self._depth == _MAX_DEPTH:
            raise _refused("is nested too deeply", self.peek_event().start_mark)
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        if isinstance(node, yaml.ScalarNode):
            # A tag that is written out must be what the value has anyway: `!!bool x` is not a truth value.
            if node.tag not in (_TEXT, self.resolve(yaml.ScalarNode, node.value, (True, False))):
                raise _refused(_FOREIGN.format(quoted(node.tag)), node.start_mark)
            if node.tag in _NUMBERS and len(node.value) > _MAX_DIGITS:
                raise _refused(f"a number of {len(node.value)} characters", node.start_mark)
        elif node.tag not in _COLLECTIONS:
            raise _refused(_FOREIGN.format(quoted(node.tag)), node.start_mark)
        return super().construct_object(node, deep=deep)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _refused("a key is a list or mapping; expected a name", key.start_mark)
            if key.value in seen:
                raise _refused(f"the key {quoted(key.value)} appears twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


_FOREIGN = "the tag {} is not allowed here: write a plain value"
_TEXT = "tag:yaml.org,2002:str"
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_COLLECTIONS = ("tag:yaml.org,2002:seq", "tag:yaml.org,2002:map")


def _refused(problem: str, mark: yaml.Mark) -> yaml.MarkedYAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, mark)


# PyYAML follows YAML 1.1, which reads 5e-4 (no dot, or no sign in the exponent) as text.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+|\d+\.\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def read_yaml(path: Path) -> tuple[dict[Hashable, Any], yaml.Node]:
    """Returns the mapping of plain values that a YAML file holds, and the nodes in which `line_of` finds a key.

    The file is UTF-8 and has at most 100 kB; whatever else it is, is told in one line.
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
    except UserError:
        raise
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({one_line(error)})") from None
    values, node = _parse(text, str(path))
    if node is None:
        raise UserError(f"{path}: is empty; `minialbert recipes show default` prints a complete recipe")
    if not isinstance(values, dict):
        raise UserError(f"{path}: should hold a mapping (key: value), got a {type(values).__name__}")
    return values, node


def read_yaml_value(text: str, source: str) -> Any:
    """Returns one YAML scalar or list as given on a command line, which messages call `source`; never a mapping."""
    if _MARKS.fullmatch(text):
        return text  # a separator, which YAML would take for its own
    value, node = _parse(text, source)
    if node is None or isinstance(value, dict):
        raise UserError(f"{source}: takes one value or a list (null clears it), got {quoted(text)}")
    return value


def line_of(node: yaml.Node | None, path: Sequence[int | str]) -> int | None:
    """Returns the line (from 1) on which a key stands below the root, or None if it is not in the file."""
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
        with closing(_Loader(text)) as loader:
            node = loader.get_single_node()
            return (None if node is None else loader.construct_document(node)), node
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{source}{where}: {shown(error.problem or error.context, 200)}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{source}: is not YAML ({one_line(error)})") from None
    except RecursionError:
        raise UserError(f"{source}: is nested too deeply") from None
