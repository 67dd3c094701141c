"""One cell of a grid or a suite: the command line, stopped when nobody is left who started it."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time

from minialbert.cli.main import main as command_line
from minialbert.experiments.pool import GRACE_SECONDS


def main() -> None:
    """Run the command line, and stop it when nobody is left who started it."""
    threading.Thread(target=_stop_when_alone, daemon=True).start()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    command_line()


def _stop_when_alone() -> None:
    os.read(0, 1)  # nothing is ever written to standard input: this waits for its end
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_SECONDS)
    os._exit(1)


if __name__ == "__main__":
    main()
