"""Who holds a folder: one process at a time, named to the others, and nobody after its death."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from stockstream import locks
from stockstream.errors import StockstreamError
from stockstream.locks import FolderLock, Holder, holder_of

HOLD = """
import sys
from pathlib import Path
from stockstream.locks import FolderLock
with FolderLock(Path(sys.argv[1]), "a demo"):
    print("held", flush=True)
    input()
"""


def _other(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout and process.stdout.readline() == "held\n"
    return process


def test_a_second_process_is_refused_with_the_first_ones_name_and_a_dead_one_holds_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    other = _other(folder)
    try:
        with pytest.raises(StockstreamError) as refused, FolderLock(folder, "mine"):
            pass
        text = str(refused.value)
        assert text.startswith(f"{folder} is in use by process {other.pid} since 20") and text.endswith("(a demo)") and "\n" not in text
        holder = holder_of(folder)
        assert holder is not None and holder.alive and holder.pid == other.pid      # the refused one left its name alone
        os.kill(other.pid, signal.SIGKILL)
    finally:
        other.communicate()
    assert (left := holder_of(folder)) is not None and not left.alive
    with FolderLock(folder, "mine"):
        holder = holder_of(folder)
        assert holder is not None and (holder.pid, holder.command) == (os.getpid(), "mine")
    assert holder_of(folder) is None


def test_it_is_free_after_the_end_and_for_other_folders(tmp_path: Path) -> None:
    for _ in range(2):
        with FolderLock(tmp_path / "a", "1"), FolderLock(tmp_path / "b", "2"), pytest.raises(StockstreamError), FolderLock(tmp_path / "a", "3"):
            pass


def test_where_the_file_system_has_no_locks_the_process_id_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: int) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(locks, "_lock", refuse)
    running = Holder(os.getppid(), socket.gethostname(), 0.0, "theirs")
    write = (tmp_path / locks.LOCK_FILE).write_text
    write(json.dumps({"pid": running.pid, "host": running.host, "since": 0.0, "command": "theirs"}))
    with pytest.raises(StockstreamError, match=r"\(theirs\)"), FolderLock(tmp_path, "mine"):
        pass
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    write(json.dumps({"pid": dead.pid, "host": running.host, "since": 0.0, "command": "theirs"}))
    with FolderLock(tmp_path, "mine"):
        assert (holder := holder_of(tmp_path)) is not None and holder.command == "mine"
    write("half a li")
    with FolderLock(tmp_path, "mine"):
        pass


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StockstreamError, match="cannot be written"), FolderLock(tmp_path / "file" / "data", "mine"):
        pass
