"""`python -m natpmp_sansio` and the command `natpmp`."""

import sys


def main() -> None:
    """Run the command, if what it needs is installed."""
    try:
        from .cli import run
    except ModuleNotFoundError as error:
        if error.name not in ("click", "rich"):
            raise
        sys.exit("natpmp: the command needs its extra; install natpmp-sansio[cli]")
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
