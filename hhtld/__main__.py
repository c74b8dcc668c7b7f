"""`python -m hhtld` and the installed command `hhtld`: the command line of `hhtld.formats`.

Little is loaded before Ctrl-C is looked after.
"""

import sys

__all__ = ["main"]


def main() -> int:
    """Run the command line and return its exit code."""
    try:
        from hhtld.commands.main import main
    except KeyboardInterrupt:
        print("interrupted; nothing was begun", file=sys.stderr)
        return 130
    return main()


if __name__ == "__main__":
    sys.exit(main())
