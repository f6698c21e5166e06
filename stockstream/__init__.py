"""stockstream: live stock analytics on Kafka. `faust -A stockstream worker` runs it."""

from typing import Any


def __getattr__(name: str) -> Any:
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from stockstream.app import load

    app = globals()["app"] = load()
    return app
