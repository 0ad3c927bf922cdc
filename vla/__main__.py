"""`python -m vla` is the `vla` command."""

import sys

from vla.cli import main

if __name__ == "__main__":
    sys.exit(main())
