"""The app of this process: the one module with global state.

`loading.load` sets it before it imports the agents, which need it for their decorators.
"""

from __future__ import annotations

from typing import Any

from stockstream.application import App

app: App


def __getattr__(name: str) -> Any:
    if name == "app":
        raise RuntimeError("the app is not made yet: call stockstream.loading.load() first")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
