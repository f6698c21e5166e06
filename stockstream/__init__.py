"""stockstream: live stock analytics on Kafka. `faust -A stockstream worker` runs it."""

import gc
import os
import sys
from typing import Any

GC_THRESHOLDS = (100_000, 20, 20)
"""Collections are rare, because a chunk's records are thousands of short-lived objects without cycles. With the default of one collection per 700 objects,
collecting costs up to five times as much as parsing."""
SWITCH_INTERVAL_S = 0.001
"""How long the fetching and archiving threads wait for a computing thread, and it for each of them. Python's default is 5 ms."""


def __getattr__(name: str) -> Any:
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # this makes a start a fifth cheaper: a worker multiplies no matrices, so it needs no BLAS threads, and no imported object is ever freed
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    gc.disable()
    try:
        from stockstream.packages import require_installation

        require_installation()                                           # before one of stockstream's imports fails
        from stockstream.loading import load

        app = globals()["app"] = load()
    finally:
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        gc.enable()
    return app
