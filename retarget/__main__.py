"""``retarget`` and ``python -m retarget``: Ctrl-C ends the command line in peace even while it is being loaded."""

import sys


def main() -> None:
    """The entry point. Imports inside: they take most of a short command's time."""
    try:
        from retarget.cli import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
