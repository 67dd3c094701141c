"""The one exception that means: the person who called can mend this."""

from __future__ import annotations


class RuntimeUserError(ValueError):
    """A mistake in the exported folder, the options or the texts, told in one line.

    What a message quotes can neither break the line nor command a terminal: letters that do not print are spelled out.

    Args:
        message: the line.
    """

    def __init__(self, message: str) -> None:
        super().__init__(
            "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in message)
        )


def one_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type where it has none."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__
