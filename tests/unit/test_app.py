from __future__ import annotations

import os
import subprocess
import sys

import pytest

LOADED = "import gc, os, stockstream; stockstream.app; print(gc.isenabled(), gc.get_freeze_count() > 50_000, os.environ['OPENBLAS_NUM_THREADS'])"


@pytest.mark.slow
@pytest.mark.parametrize(("given", "threads"), [({}, "1"), ({"OPENBLAS_NUM_THREADS": "2"}, "2")])
def test_a_worker_loads_without_collections_and_threads_and_collects_afterwards(given: dict[str, str], threads: str) -> None:
    ours = {name: value for name, value in os.environ.items() if name != "OPENBLAS_NUM_THREADS"}
    reported = subprocess.run([sys.executable, "-c", LOADED], env=ours | given, capture_output=True, text=True, check=True).stdout
    assert reported.split() == ["True", "True", threads]


LINE = """
import sys, stockstream.loading
stockstream.loading.load(("agents.clean", "agents.aggregate"))
print([name for name in ("pandas", "numpy.ma", "stockstream.web.mounting", "pyarrow.parquet") if name in sys.modules])
"""


@pytest.mark.slow
def test_what_a_line_without_views_has_no_use_for_is_not_loaded() -> None:
    assert subprocess.run([sys.executable, "-c", LINE], capture_output=True, text=True, check=True).stdout == "[]\n"


ENDING = """
import atexit, os, sys, threading, time
import faust
from stockstream.application import Worker

leave = os._exit
os._exit = lambda status: (print("at once", flush=True), leave(status))
atexit.register(print, "registered")
threading.Thread(target=lambda: (time.sleep(0.3), print("worked on")), daemon={daemon}).start()
faust.Worker.execute_from_commandline = lambda self: sys.exit({given!r})
Worker.__new__(Worker).execute_from_commandline()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "daemon", "status", "reported"),
    [
        (0, True, 0, ["registered", "at once"]),
        (3, True, 3, ["registered", "at once"]),
        (0, False, 0, ["worked on", "registered"]),
        ("why", True, 1, ["registered"]),
    ],
    ids=["stopped", "failed", "a thread at work", "no status"],
)
def test_a_worker_that_has_ended_goes_at_once(given: int | str, daemon: bool, status: int, reported: list[str]) -> None:
    ended = subprocess.run([sys.executable, "-c", ENDING.format(given=given, daemon=daemon)], capture_output=True, text=True, check=False, timeout=60)
    assert (ended.returncode, ended.stdout.splitlines()) == (status, reported), ended.stderr


def test_there_is_nothing_else_to_load() -> None:
    import stockstream

    with pytest.raises(AttributeError, match="nothing"):
        stockstream.nothing  # noqa: B018
