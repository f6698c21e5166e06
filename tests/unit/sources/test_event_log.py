"""The log of events on disks that fill and come back."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path

import pytest

from stockstream.sources import event_log
from stockstream.sources.event_log import RETRY_S, EventLog
from tests.requirements import NO_DEV_FULL


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_folder_that_is_a_file_is_reported_once_and_what_waited_is_written_when_it_is_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "state").write_text("")
    clock = Clock()
    log = EventLog(tmp_path / "state" / "events.jsonl", clock)
    with caplog.at_level(logging.INFO):
        for number in range(20):
            log.append([b"%d\n" % number])
            clock.now += RETRY_S
        assert "cannot be written" in log.trouble and len(caplog.records) == 1
        (tmp_path / "state").unlink()
        log.flush()
    assert log.trouble == "" and (tmp_path / "state" / "events.jsonl").read_text().splitlines() == [str(number) for number in range(20)]
    assert "can be written again; 0 lines were dropped" in caplog.text


@pytest.mark.parametrize("place", ["a folder", "/dev/full"])
def test_a_path_that_is_a_folder_and_a_device_that_is_full_do_not_raise(place: str, tmp_path: Path) -> None:
    if place == "/dev/full" and not Path(place).exists():
        pytest.skip(NO_DEV_FULL)
    log = EventLog(tmp_path if place == "a folder" else Path(place), Clock())
    log.append([b"x\n"])
    assert "cannot be written: " in log.trouble


def test_what_waits_is_bounded_and_only_whole_lines_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_log, "KEPT_BYTES", 10)
    (tmp_path / "state").write_text("")
    clock = Clock()
    log = EventLog(tmp_path / "state" / "events.jsonl", clock)
    for number in range(100):
        log.append([b"%d\n" % number])
    assert len(log._waiting) == 10 and log.left_out == 95
    (tmp_path / "state").unlink()
    clock.now += RETRY_S
    log.append([])
    assert (tmp_path / "state" / "events.jsonl").read_text() == "0\n1\n2\n3\n4\n" and log.left_out == 0


def test_a_line_that_the_disk_took_half_of_is_whole_in_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room, write = [7], os.write

    def limited(file: int, data: bytes) -> int:
        if room[0] == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        some = data[: room[0]]
        room[0] -= len(some)
        return write(file, some)

    monkeypatch.setattr(os, "write", limited)
    clock = Clock()
    log = EventLog(tmp_path / "events.jsonl", clock)
    log.append([b"first\n", b"second\n"])
    assert log.trouble.endswith("No space left on device") and (tmp_path / "events.jsonl").read_text() == "first\ns"
    room[0] = 1_000
    log.append([b"third\n"])
    assert (tmp_path / "events.jsonl").read_text() == "first\ns"                     # not yet: it is tried once a second
    clock.now += RETRY_S
    log.flush()
    assert (tmp_path / "events.jsonl").read_text() == "first\nsecond\nthird\n" and log.trouble == ""
