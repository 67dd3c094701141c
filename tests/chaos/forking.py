"""A process that has imported everything and forks one child per command, which saves the seconds of importing.

It reads requests from standard input, one JSON object a line, and answers each with the child's process id and,
once that has ended, with its exit status. Nothing in here runs a tensor operation: there are no threads to lose.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import traceback
from typing import Any, NoReturn


def preload() -> None:
    """Import what the commands import."""
    from transformers import BertForMaskedLM, PreTrainedTokenizerFast, Trainer  # noqa: F401

    import minialbert
    import minialbert.cli.main
    import minialbert.data.prepare
    import minialbert.experiments.grid
    import minialbert.method.distill
    import minialbert.tasks.finetune  # noqa: F401


def become(request: dict[str, Any]) -> NoReturn:
    """Turn a forked child into the process that a request describes, and run its command.

    Args:
        request: `arguments`, `environment`, `stdout` and `stderr` (pipes with names).
    """
    os.setsid()
    for number, path in enumerate((os.devnull, request["stdout"], request["stderr"])):
        opened = os.open(path, os.O_RDONLY if number == 0 else os.O_WRONLY)
        os.dup2(opened, number)
        os.close(opened)
    os.environ.update(request["environment"])
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a background job does not have
    sys.argv = ["minialbert", *request["arguments"]]
    import injected

    status = 1
    try:
        injected.main()
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:  # what the interpreter would do
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # taking all modules apart would take seconds


def serve() -> None:
    """Answer requests until there are no more."""
    preload()
    gc.freeze()  # children write to fewer pages
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")

    def answer(**values: Any) -> None:
        answers.write(json.dumps(values) + "\n")
        answers.flush()

    answer(ready=os.getpid())
    while line := sys.stdin.readline():
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            answers.close()
            become(request)
        answer(pid=child)
        answer(status=os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


if __name__ == "__main__":
    serve()
