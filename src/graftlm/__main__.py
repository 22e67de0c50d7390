"""`python -m graftlm` is `graft`."""

from __future__ import annotations

import sys

from graftlm.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
