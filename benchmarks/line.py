"""The line's worker with some of its agents only: `python -m benchmarks.line agents.clean,agents.aggregate worker -l warn`.

What is loaded is all that differs from `faust -A stockstream`: transport, guards and state are the same.
"""

from __future__ import annotations

import gc
import importlib
import os
import sys
from typing import Any


def main() -> None:
    """Loads the modules named first; the rest are Faust's arguments."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")                  # this and the next two as the command and the package do, which we are too early for
    from faust.cli.faust import cli

    gc.disable()
    loading: Any = importlib.import_module("stockstream.loading")
    loading.load.__defaults__ = (tuple(sys.argv[1].split(",")),)
    sys.argv = ["faust", "-A", "stockstream", *sys.argv[2:]]
    cli()


if __name__ == "__main__":
    main()
