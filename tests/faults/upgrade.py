"""A rolling upgrade: two workers of an earlier release under load are replaced, one after the other, by workers of this code."""

from __future__ import annotations

import io
import subprocess
import tarfile
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.faults.line import Line
from tests.faults.verdict import Verdict
from tests.faults.workers import ROOT, NotPossible, Worker
from tests.kafka import Cluster

if TYPE_CHECKING:
    from tests.faults.cases import Scale

BEFORE = "261d687ecb402db9d3509018a089783aff29ae3f"
"""The first commit with the rules of docs/market-data.md: workers before it reject some of what the market of these cases sends.

`tests/unit/transforms/test_releases.py` goes on from the state and frames of earlier releases.
"""


def checkout(commit: str, folder: Path) -> Path:
    """The files of a commit of this repository, in `folder`. Raises `NotPossible` where the repository does not have it."""
    try:
        archive = subprocess.run(["git", "-C", str(ROOT), "archive", "--format=tar", commit], capture_output=True, check=True).stdout
    except OSError as error:
        raise NotPossible(f"git is needed to check out {commit[:10]}: {error}") from error
    except subprocess.CalledProcessError as error:
        output = error.stderr.decode(errors="replace").strip()
        raise NotPossible(f"commit {commit[:10]} is not in the history of {ROOT} (a shallow clone lacks it: git fetch --unshallow): {output}") from error
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        files.extractall(folder, filter="data")
    return folder


def upgrade(cluster: Cluster, seed: int, scale: Scale) -> Verdict:
    """16. Two workers of the commit before are replaced one after the other, under load."""
    if scale.server is not None:
        raise NotPossible("the commit before archives in folders only")
    with tempfile.TemporaryDirectory(prefix="stockstream-before-") as folder, Line(cluster, seed, **scale.line) as line:
        line.market.about_the_feed = False
        before = checkout(BEFORE, Path(folder))
        old = [line.worker(root=before) for _ in range(2)]
        for worker in old:
            worker.wait_ready()
        line.producer.start(scale(130, 330))
        line.wait_for_windows()
        time.sleep(scale(4, 60))
        for worker in old:
            _replace(line, worker, scale)
            time.sleep(scale(4, 60))
        return line.check(line.finish(timeout_s=60, same_snapshots=False))


def _replace(line: Line, worker: Worker, scale: Scale) -> None:
    took = worker.stop()
    new = line.worker()
    new.wait_ready(60)
    line.wait_for_windows(timeout_s=60)
    line.count("worker upgraded")
    scale.say(f"  {worker.name} of {BEFORE[:7]} ended {took:.1f} s after SIGTERM; {new.name} of this code has taken its place")
