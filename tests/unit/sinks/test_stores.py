"""The stores: what each does beyond the contract of them all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from stockstream.errors import ArchiveUnavailable, SettingsError
from stockstream.sinks.memory import MemoryStore
from stockstream.sinks.stores import STALE_S, TEMPORARY, FileStore, Store, open_store
from tests.contracts.store import StoreContract


class TestMemoryStore(StoreContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Store:
        return MemoryStore()

    @pytest.fixture
    def unavailable(self, tmp_path: Path) -> Store:
        store = MemoryStore()
        store.down = True
        return store

    def test_fails_on_purpose(self) -> None:
        store = MemoryStore(seed=3)
        store.down = True
        with pytest.raises(ArchiveUnavailable):
            store.create("a", b"")
        store.down, store.failing = False, 1.0
        outcomes = set()
        for number in range(50):
            with pytest.raises(ArchiveUnavailable):
                store.create(str(number), b"")
            outcomes.add(str(number) in store.objects)
        assert outcomes == {True, False}        # an answer may be lost, and so may the request


class TestFileStore(StoreContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Store:
        return FileStore(tmp_path / "archive")

    @pytest.fixture
    def unavailable(self, tmp_path: Path) -> Store:
        (tmp_path / "file").write_text("")
        return FileStore(tmp_path / "file")

    def test_leaves_no_temporary_file(self, tmp_path: Path) -> None:
        store = FileStore(tmp_path)
        store.create("a/b", b"x")
        store.create("a/b", b"x")
        assert list((tmp_path / TEMPORARY).iterdir()) == []
        assert list(store.list("")) == ["a/b"]

    def test_sweeps_what_a_crash_left(self, tmp_path: Path) -> None:
        (tmp_path / TEMPORARY).mkdir()
        old, new = tmp_path / TEMPORARY / "old", tmp_path / TEMPORARY / "new"
        for path in (old, new):
            path.write_bytes(b"half")
        os.utime(old, (0, old.stat().st_mtime - STALE_S - 60))
        store = FileStore(tmp_path)
        store.create("a", b"x")
        assert not old.exists() and new.exists() and list(store.list("")) == ["a"]

    def test_a_full_disk_leaves_nothing_and_can_be_tried_again(self, tmp_path: Path) -> None:
        class Full(FileStore):
            full = True

            def _write(self, path: Path, data: bytes) -> None:
                if self.full:
                    path.write_bytes(data[: len(data) // 2])
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                super()._write(path, data)

        store = Full(tmp_path)
        with pytest.raises(ArchiveUnavailable, match="No space left") as raised:
            store.create("a/b", b"0123456789")
        assert raised.value.retriable and store.size("a/b") is None and list((tmp_path / TEMPORARY).iterdir()) == []
        store.full = False
        assert store.create("a/b", b"0123456789") and store.read("a/b") == b"0123456789"

    def test_a_folder_that_cannot_be(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(ArchiveUnavailable, match="cannot write a/b"):
            FileStore(tmp_path / "file").create("a/b", b"")


def test_urls(tmp_path: Path) -> None:
    store = open_store(f"file://{tmp_path}/x")
    assert store.create("a", b"1") and (tmp_path / "x" / "a").read_bytes() == b"1"
    for url in ("file://", ""):
        with pytest.raises(SettingsError, match="not file://path"):
            open_store(url)
    with pytest.raises(SettingsError, match=r"archive 'gs://bucket/x' has the scheme gs://, which is not supported; use a plain path or one of: file://, s3://$"):
        open_store("gs://bucket/x")
