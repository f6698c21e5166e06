"""Every fault in its short form, each with a fixed seed, on three brokers. `make soak` runs the full numbers."""

from __future__ import annotations

import pytest

from tests.faults.cases import CASES, Scale
from tests.faults.places import server_of
from tests.faults.workers import NotPossible
from tests.kafka import Cluster

SEEDS = {name: 100 + number for number, name in enumerate(CASES)}
IN_A_BUCKET = ("archive",)
"""The cases that run with the archive in a bucket too; all others do by `python -m tests.faults.soak --store s3`."""


@pytest.mark.slow
@pytest.mark.parametrize(("name", "store"), [
    *(pytest.param(name, "file", id=name) for name in CASES), *(pytest.param(name, "s3", id=f"{name}-s3") for name in IN_A_BUCKET),
])  # fmt: skip
@pytest.mark.filterwarnings("default::ResourceWarning", "default::DeprecationWarning")
def test_exact_under(name: str, store: str, kafka3: Cluster) -> None:
    try:
        with server_of(store) as server:
            CASES[name](kafka3, SEEDS[name], Scale(server=server))
    except NotPossible as error:
        pytest.skip(str(error))
