"""What every store must do, written once: each store's tests inherit `StoreContract`."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from stockstream.errors import ArchiveError, ArchiveUnavailable
from stockstream.sinks.stores import Store
from tests.patience import PATIENCE_S


class StoreContract(ABC):
    @pytest.fixture
    @abstractmethod
    def store(self, tmp_path: Path) -> Store:
        """A new store without objects."""

    @pytest.fixture
    @abstractmethod
    def unavailable(self, tmp_path: Path) -> Store:
        """A store that cannot be reached for now."""

    def test_creates_once_and_keeps_the_first(self, store: Store) -> None:
        assert store.create("raw/a/1", b"one")
        assert not store.create("raw/a/1", b"another")
        assert store.read("raw/a/1") == b"one"

    def test_keeps_every_byte(self, store: Store) -> None:
        data = bytes(range(256)) * 5_000
        store.create("x", data)
        assert store.read("x") == data and store.size("x") == len(data)

    def test_reads_the_tail(self, store: Store) -> None:
        store.create("x", b"0123456789")
        assert store.read("x", 3) == b"789" and store.read("x", 10) == store.read("x", 99) == b"0123456789"
        store.create("empty", b"")
        assert store.read("empty") == store.read("empty", 3) == b""

    def test_reads_a_range(self, store: Store) -> None:
        store.create("x", b"0123456789")
        assert store.read_range("x", 0, 3) == b"012" and store.read_range("x", 4, 10) == b"456789" and store.read_range("x", 8, 99) == b"89"
        assert store.read_range("x", 3, 3) == store.read_range("x", 10, 12) == b""
        with pytest.raises(ArchiveError, match="there is no"):
            store.read_range("y", 0, 1)

    def test_an_object_that_does_not_exist(self, store: Store) -> None:
        store.create("there/is", b"")
        assert store.size("there/is") == 0 and store.size("there/is not") is None
        for tail in (0, 3):
            with pytest.raises(ArchiveError, match="there is no") as raised:
                store.read("there/is not", tail)
            assert not raised.value.retriable

    def test_lists_in_the_order_of_bytes(self, store: Store) -> None:
        names = ["a/b/1", "a/b/2", "a/b-c/1", "a/b.d", "a/c", "ab", "b/x/y/z", "a/b/10"]
        assert list(store.list("")) == []
        for name in names:
            store.create(name, b"")
        assert list(store.list("")) == sorted(names)
        for prefix in ("a/", "a/b", "a/b/", "a/b/1", "b/x", "nothing/"):
            found = sorted(name for name in names if name.startswith(prefix))
            assert list(store.list(prefix)) == found
            for start in [*names, "a/b", "zzz"]:
                assert list(store.list(prefix, start)) == [name for name in found if name > start]

    def test_lists_size_and_time(self, store: Store) -> None:
        begin = datetime.now(UTC) - timedelta(seconds=2)                 # S3 rounds to seconds
        store.create("a/1", b"one")
        store.create("a/2", b"")
        assert [(entry.name, entry.size) for entry in store.entries("a/")] == [("a/1", 3), ("a/2", 0)]
        assert [entry.name for entry in store.entries("a/", "a/1")] == ["a/2"]
        assert all(begin < entry.modified < datetime.now(UTC) + timedelta(seconds=2) for entry in store.entries(""))

    def test_a_deleted_object_is_gone_and_its_name_is_free(self, store: Store) -> None:
        store.create("a/1", b"one")
        store.create("a/2", b"two")
        store.delete("a/1")
        store.delete("a/1")
        assert store.size("a/1") is None and list(store.list("a/")) == ["a/2"]
        assert store.create("a/1", b"again") and store.read("a/1") == b"again"

    def test_one_of_many_wins(self, store: Store) -> None:
        won: list[int] = []

        def race(number: int) -> None:
            if store.create("raw/contested", bytes([number]) * 1000):
                won.append(number)

        threads = [threading.Thread(target=race, args=(number,), daemon=True) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_S)
        assert len(won) == 1 and store.read("raw/contested") == bytes([won[0]]) * 1000

    @pytest.mark.parametrize("call", [
        lambda store: store.create("a/b", b"x"), lambda store: store.read("a/b"), lambda store: store.size("a/b"), lambda store: list(store.list("a/")),
        lambda store: list(store.entries("a/")), lambda store: store.delete("a/b"),
    ], ids=["create", "read", "size", "list", "entries", "delete"])  # fmt: skip
    @pytest.mark.slow
    def test_every_call_to_a_store_that_cannot_be_reached_can_be_retried(self, unavailable: Store, call: Callable[[Store], object]) -> None:
        with pytest.raises(ArchiveUnavailable) as raised:
            call(unavailable)
        assert raised.value.retriable and "\n" not in str(raised.value)
