"""The one exception that means: the person who called can mend this."""

from __future__ import annotations


def printable(text: str) -> str:
    """Return text with line ends, control characters and all else that does not print spelled out."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


class UserError(ValueError):
    """A mistake in the input, told in one line.

    The message says what was expected, what came, where (file, row) and what to do next. The command
    line prints it without a traceback and exits with status 2; libraries can catch it as a `ValueError`.

    What a message quotes of a file can neither break the line nor command a terminal: letters that do not print are
    spelled out.

    Args:
        message: the line.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(printable(message))


class MissingExtraError(UserError):
    """An optional dependency is not installed.

    Args:
        package: the module that could not be imported.
        extra: the extra of this distribution that brings it.
        purpose: what it is needed for, as in "reading .zst files".
    """

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs {package}: pip install 'minialbert[{extra}]'")
