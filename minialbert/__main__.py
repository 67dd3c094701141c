"""`python -m minialbert`, for launchers such as torchrun."""

from minialbert.cli.main import main

main()
