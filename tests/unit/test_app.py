from __future__ import annotations

import os
import subprocess
import sys

import pytest

LOADED = "import gc, os, stockstream; stockstream.app; print(gc.isenabled(), gc.get_freeze_count() > 50_000, os.environ['OPENBLAS_NUM_THREADS'])"


@pytest.mark.parametrize(("given", "threads"), [({}, "1"), ({"OPENBLAS_NUM_THREADS": "2"}, "2")])
def test_a_worker_loads_without_collections_and_threads_and_collects_afterwards(given: dict[str, str], threads: str) -> None:
    ours = {name: value for name, value in os.environ.items() if name != "OPENBLAS_NUM_THREADS"}
    told = subprocess.run([sys.executable, "-c", LOADED], env=ours | given, capture_output=True, text=True, check=True).stdout
    assert told.split() == ["True", "True", threads]


def test_there_is_nothing_else_to_load() -> None:
    import stockstream

    with pytest.raises(AttributeError, match="nothing"):
        stockstream.nothing  # noqa: B018
