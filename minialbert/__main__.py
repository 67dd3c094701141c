"""`python -m minialbert`, for launchers such as torchrun."""

from .cli import main

main()
