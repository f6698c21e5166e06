"""`stockstream replay ARCHIVE/raw`: what the command prints around a restore. `tests/unit/replaying` and `tests/integration` have the restore itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stockstream.cli import run
from stockstream.commands import replay
from stockstream.replaying.restore import Restored
from stockstream.sinks.archive.chain import Chain
from stockstream.sinks.stores import FileStore
from tests.archives import Record, append


@pytest.mark.parametrize("same", [True, False])
def test_the_reminder_of_another_archive_comes_after_the_restore(
    same: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    append(Chain(FileStore(tmp_path), "log1", 0), [Record(0, 1_760_000_000_000, b"{}", b"A")])
    monkeypatch.setenv("STOCKSTREAM_ARCHIVE", str(tmp_path if same else tmp_path / "other"))

    async def restore(*_: Any, **__: Any) -> Restored:
        return Restored("the archive", ["log1"], "stockstream.ticks.raw", 1)

    monkeypatch.setattr(replay, "restore", restore)
    assert run(["replay", f"{tmp_path}/raw", "--date", "2025-10-10"]) == 1
    assert capsys.readouterr().err == f"stockstream: file://{tmp_path} has no raw objects of these times; it has those of 2025-10-09\n"
    assert run(["replay", f"{tmp_path}/raw"]) == 0
    reminder = f"before you start a worker of the restored log, set another STOCKSTREAM_ARCHIVE: in {tmp_path} its rows would count a second time"
    assert capsys.readouterr().err == (f"stockstream: {reminder}\n" if same else "")
