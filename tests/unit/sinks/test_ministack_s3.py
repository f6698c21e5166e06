"""The store in a bucket of MiniStack's S3: the same contract on a second implementation of the API."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from stockstream.sinks.s3 import S3Access, S3Store
from stockstream.sinks.stores import Store
from tests.contracts.store import StoreContract
from tests.standins.ministack import MiniStack, ministack
from tests.standins.s3 import environment_of

pytestmark = pytest.mark.slow
_numbers = itertools.count()


@pytest.fixture(scope="module")
def running() -> Iterator[MiniStack]:
    with ministack() as server:
        yield server


class TestMiniStackStore(StoreContract):
    @pytest.fixture(autouse=True)
    def _environment(self, running: MiniStack, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        with environment_of(running, monkeypatch):
            yield

    @pytest.fixture
    def store(self, running: MiniStack, tmp_path: Path) -> Store:
        return S3Store(f"s3://bucket/{next(_numbers)}", S3Access(running.endpoint))

    @pytest.fixture
    def unavailable(self, tmp_path: Path) -> Store:
        return S3Store("s3://bucket/archive", S3Access("http://127.0.0.1:9"))

    def test_it_is_accepted_as_a_place_for_an_archive(self, store: Store) -> None:
        assert isinstance(store, S3Store) and store.require_writable("STOCKSTREAM_ARCHIVE") == ""
