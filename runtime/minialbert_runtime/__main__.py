"""Run the command line as `python -m minialbert_runtime`."""

from .cli import main

main()
