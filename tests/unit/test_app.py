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
import sys
import faust
from stockstream.application import Worker

def work(self):
    print("x" * 100)
    sys.exit({status})

faust.Worker.execute_from_commandline = work
print("begun", flush=True)
sys.stdin.read()
Worker.__new__(Worker).execute_from_commandline()
"""


@pytest.mark.slow
@pytest.mark.parametrize("status", [0, 75])
@pytest.mark.parametrize("read", [True, False], ids=["output is read", "the reader is gone"])
def test_a_worker_keeps_its_exit_status(status: int, read: bool) -> None:
    pipe = subprocess.PIPE
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with subprocess.Popen([sys.executable, "-c", ENDING.format(status=status)], stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment) as worker:
        assert worker.stdout and worker.stderr and worker.stdin
        assert worker.stdout.readline() == "begun\n"
        if not read:
            worker.stdout.close()
        worker.stdin.close()
        if read:
            assert worker.stdout.read() == "x" * 100 + "\n"
        error = worker.stderr.read()
        assert worker.wait(timeout=60) == status, error
        assert read or "Exception ignored" not in error


def test_there_is_nothing_else_to_load() -> None:
    import stockstream

    with pytest.raises(AttributeError, match="nothing"):
        stockstream.nothing  # noqa: B018
