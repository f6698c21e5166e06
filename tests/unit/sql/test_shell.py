"""The shell of `stockstream query`, in a terminal."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from stockstream.sql.shell import completions
from tests.patience import PATIENCE_S

LONG = "SELECT count(*) FROM range(1000000000000) AS numbers(i) WHERE i % 3 = 7"


class Terminal:
    """A program in a terminal of its own."""

    def __init__(self, arguments: list[str], home: Path) -> None:
        self._end, other = pty.openpty()
        environment = {**os.environ, "XDG_STATE_HOME": str(home), "TERM": "xterm", "INPUTRC": "/dev/null"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "stockstream.cli", *arguments], stdin=other, stdout=other, stderr=other, env=environment, start_new_session=True,
            preexec_fn=_take_terminal,
        )  # fmt: skip
        os.close(other)
        self.text = ""

    def type(self, text: str) -> None:
        os.write(self._end, text.encode())

    def until(self, wanted: str) -> str:
        """What has come through `wanted`, which is taken away."""
        assert self._came(wanted, time.monotonic() + PATIENCE_S), f"no {wanted!r} in {self.text!r}"
        before, _, self.text = self.text.partition(wanted)
        return before + wanted

    def _came(self, wanted: str, deadline: float) -> bool:
        while wanted not in self.text and time.monotonic() < deadline:
            if select.select([self._end], [], [], 0.1)[0]:
                try:
                    self.text += os.read(self._end, 65_536).decode(errors="replace")
                except OSError:
                    assert wanted in self.text, f"it has ended without {wanted!r}: {self.text!r}"
        return wanted in self.text

    def interrupt(self, wanted: str) -> None:
        """Presses Ctrl-C until an answer comes: readline misses a signal that arrives just before it waits for keys."""
        for _ in range(4):
            self.type("\x03")
            if self._came(wanted, time.monotonic() + PATIENCE_S / 4):       # a second Ctrl-C too early would end what comes next
                break
        self.until(wanted)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._end)


def _take_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    (tmp_path / "archive").mkdir()
    opened = Terminal(["query", "--archive", str(tmp_path / "archive")], tmp_path)
    try:
        yield opened
    finally:
        opened.close()


def test_a_session(terminal: Terminal, tmp_path: Path) -> None:
    terminal.until(".help shows the commands")
    terminal.until("stockstream> ")
    terminal.type("SELECT 40 + 2 AS answer;\n")
    assert "42" in terminal.until("(1 row, ")
    terminal.until("stockstream> ")
    terminal.type("SELECT ';' AS sign,\n")
    terminal.until("...> ")
    terminal.type("1 AS one;\n")
    assert "sign  one" in terminal.until("(1 row, ").replace("\r", "")
    terminal.type(".format json\n.tables\n")
    assert "alerts: changes of alerts" in terminal.until("raw: records of ticks.raw")
    terminal.type("SELECT 1.50::DECIMAL(5, 2) AS exact;\n")
    terminal.until('[{"exact": 1.50}]')
    terminal.type("SELECT nothing FROM ticks;\n")
    terminal.until("error: there is no column 'nothing'")
    terminal.until("stockstream> ")
    terminal.type("SELECT a word that I drop\n")
    terminal.until("...> ")
    terminal.interrupt("stockstream> ")
    terminal.type(f"{LONG};\n")
    terminal.until("Ctrl-C ends the query")
    terminal.type("\x03")
    terminal.until("cancelled")
    terminal.type("SELECT count(*) AS n FROM predic\t;\n")
    assert "predictions" in terminal.until('[{"n": 0}]')
    terminal.until("the archive has no predictions yet")
    terminal.until("stockstream> ")
    terminal.type("help\n")
    terminal.until("Statements end with a semicolon")
    terminal.until("stockstream> ")
    terminal.type("exit;\n")
    assert terminal.process.wait(PATIENCE_S) == 0
    history = (tmp_path / "stockstream" / "query_history").read_text().splitlines()
    assert "SELECT ';' AS sign, 1 AS one;" in history and not any("drop" in line for line in history)


def test_ctrl_c_ends_a_query_with_status_130_and_without_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "archive").mkdir()
    opened = Terminal(["query", "--archive", str(tmp_path / "archive"), LONG], tmp_path)
    try:
        opened.until("Ctrl-C ends the query")
        opened.process.send_signal(signal.SIGINT)
        assert opened.process.wait(PATIENCE_S) == 130
        assert "Traceback" not in opened.text
    finally:
        opened.close()


def test_completions() -> None:
    assert completions("SELECT count(*) FROM tic", "tic") == ["ticks"] and completions("SELECT 1 FROM pre", "pre") == ["predictions"]
    assert "ticks_5m" in completions("SELECT ti FROM windows", "ti") and "ticks_5m" not in completions("SELECT ti FROM raw", "ti")
    assert completions("SELECT off FROM ticks", "off") == ['"offset"']
    assert completions("sel", "sel") == ["select"] and completions("SEL", "SEL") == ["SELECT"]
    assert completions(".for", ".for") == [".format"] and completions(".format j", "j") == ["json"]
    assert completions("", "") == []
