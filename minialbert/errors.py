"""The one exception that means: the person who called can mend this."""

from __future__ import annotations


class UserError(ValueError):
    """A mistake in the input, told in one line.

    The message says what was expected, what came, where (file, row) and what to do next. The command
    line prints it without a traceback and exits with status 2; libraries can catch it as a `ValueError`.
    """


class MissingExtraError(UserError):
    """An optional dependency is not installed.

    Args:
        package: the module that could not be imported.
        extra: the extra of this distribution that brings it.
        purpose: what it is needed for, as in "reading .zst files".
    """

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs {package}: pip install 'minialbert[{extra}]'")
