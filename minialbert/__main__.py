"""`minialbert` and `python -m minialbert`: the command line, which answers Ctrl-C while it is still imported, too."""

import sys


def main() -> None:
    """Run the command line."""
    try:
        from minialbert.cli.main import main as command_line

        command_line()
    except KeyboardInterrupt:
        sys.stderr.write("minialbert: interrupted; the same command starts it again\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
