"""Runs the command line, whose data are missing in the second process; the arguments are those of `minialbert`."""

from __future__ import annotations

import os
import sys

from minialbert.cli import main

if os.environ["RANK"] == "1":
    place = sys.argv.index("--data") + 1
    sys.argv[place] += "-elsewhere"
main.main()
