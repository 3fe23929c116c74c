"""`python -m verifiers`."""

from __future__ import annotations

import sys

from verifiers.cli import main

if __name__ == "__main__":
    sys.exit(main())
