"""stockstream: live stock analytics on Kafka. `faust -A stockstream worker` runs it."""

import gc
import os
import sys
from typing import Any

GC_THRESHOLDS = (100_000, 20, 20)
"""A chunk's records are thousands of objects that live briefly and hold no cycles: looked at after each 700 of them, as by default, they cost up to five
times what it takes to parse them."""
SWITCH_INTERVAL_S = 0.001
"""How long the thread that fetches and those that archive wait for one that computes, and it for each of them: 5 ms by default."""


def __getattr__(name: str) -> Any:
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # a worker starts by a fifth cheaper so: it multiplies no matrices for BLAS's threads to wait for, and nothing that is loaded goes again
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    gc.disable()
    try:
        from stockstream.packages import require_installation

        require_installation()                                           # before an import of ours fails for it
        from stockstream.loading import load

        app = globals()["app"] = load()
    finally:
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        gc.enable()
    return app
