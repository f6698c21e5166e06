"""Every fault in its short form, each with a fixed seed, on three brokers. `make soak` runs the full numbers."""

from __future__ import annotations

import pytest

from tests.faults.cases import CASES, Scale
from tests.faults.workers import NotPossible
from tests.kafka import Cluster

SEEDS = {name: 100 + number for number, name in enumerate(CASES)}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("default::ResourceWarning", "default::DeprecationWarning")
def test_exact_under(name: str, kafka3: Cluster) -> None:
    try:
        CASES[name](kafka3, SEEDS[name], Scale())
    except NotPossible as error:
        pytest.skip(str(error))
