"""``python -m sctool``: the command line without its script, which may not be on the path."""

import sys

from sctool.cli import main

if __name__ == "__main__":
    sys.exit(main())
