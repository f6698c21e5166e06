"""Runs a worker and restarts it when it fails, more slowly if it keeps failing for the same reason."""

from __future__ import annotations

import re
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType

from stockstream.children import Child
from stockstream.clock import now_s
from stockstream.endings import DO_NOT_RESTART

DELAYS_S = (1.0, 2.0, 4.0, 8.0, 10.0)
"""Delays before the first, second, ... restart in a row; the last one repeats."""
LOOP_ENDS = 3
"""This many failures in a row for the same reason, each within HEALTHY_S of the start, are a crash loop."""
LOOP_DELAYS_S = (60.0, 300.0)
"""Delays in a crash loop; the last one repeats."""
HEALTHY_S = 60.0
"""A failure after this long counts as a new one, and the delays start over."""
STOP_GRACE_S = 10.0
"""How long after SIGTERM the worker is killed. It normally ends sooner (docs/reliability.md)."""
_SECONDS = re.compile(r"\d+\.\d+|\d+(?= s\b)|0x[0-9a-f]+")
"""The parts of a reason that vary between equal failures: durations and addresses. Offsets and partitions distinguish failures."""


class Supervisor:
    """Runs one command and restarts it when it fails. It forwards the first SIGTERM or SIGINT, and leaves no child behind.

    Args:
        command: the command line.
        report: called with one line for the user.
        delays_s: the delays before restarts in a row.
        grace_s: seconds from a signal to SIGKILL.
        loop_delays_s: the delays in a crash loop.
        environment: added to this process's environment.
        reason_file: where the command leaves the reason of its end, in one line.
    """

    def __init__(
        self, command: Sequence[str], report: Callable[[str], None], delays_s: Sequence[float] = DELAYS_S, grace_s: float = STOP_GRACE_S, *,
        loop_delays_s: Sequence[float] = LOOP_DELAYS_S, environment: Mapping[str, str] | None = None, reason_file: Path | None = None,
    ) -> None:  # fmt: skip
        self._command, self._report, self._delays_s, self._grace_s = command, report, delays_s, grace_s
        self._loop_delays_s, self._environment, self._reason_file = loop_delays_s, environment, reason_file
        self._child: Child | None = None
        self._stop_signal: signal.Signals | None = None

    def run(self, *, restart: bool) -> int:
        """Runs until the command succeeds, a signal asks for the end, a restart cannot help, or `restart` is false. Call it in the main thread.

        Returns the exit status, 128 + n after signal n.
        """
        before = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            return self._run(restart)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            if self._child is not None:
                self._child.stop(self._grace_s)

    def _run(self, restart: bool) -> int:
        failures = same_reason = 0
        last = ""
        while True:
            started = now_s()
            self._child = Child(self._command, environment=self._environment)
            if self._stop_signal is not None:                 # the signal came before there was a child to forward it to
                self._forward(self._stop_signal)
            status = self._child.wait()
            self._child = None
            status = 128 - status if status < 0 else status
            reason = self._take_reason()
            if self._stop_signal is not None or status in (0, DO_NOT_RESTART) or not restart:
                return 0 if self._stop_signal is not None and status == 128 + self._stop_signal else status
            healthy = now_s() - started >= HEALTHY_S
            reason_kind = _SECONDS.sub("N", reason) or f"status {status}"
            failures = 1 if healthy else failures + 1
            same_reason = 1 if healthy or reason_kind != last else same_reason + 1
            last = reason_kind
            delay = self._delays_s[min(failures, len(self._delays_s)) - 1]
            line = f"the worker ended with status {status}; it is restarted in {delay:g} s"
            if same_reason >= LOOP_ENDS:
                delay = self._loop_delays_s[min(same_reason - LOOP_ENDS, len(self._loop_delays_s) - 1)]
                line = (
                    f"crash loop: the worker ended {same_reason} times in a row for the same reason: {reason or reason_kind}; "
                    f"it is restarted in {delay:g} s. "
                    "See docs/reliability.md, \"A worker that ends again and again\""
                )
            self._report(line)
            until = now_s() + delay
            while now_s() < until and self._stop_signal is None:
                time.sleep(0.05)
            if self._stop_signal is not None:
                return 0

    def _take_reason(self) -> str:
        """The reason that the command left; empty if it left none."""
        if self._reason_file is None:
            return ""
        try:
            reason = self._reason_file.read_text(errors="replace")
            self._reason_file.unlink()
        except OSError:
            return ""
        return " ".join(reason.split())

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        if self._stop_signal is None:
            self._stop_signal = signal.Signals(number)
            self._forward(self._stop_signal)

    def _forward(self, number: signal.Signals) -> None:
        child = self._child
        if child is not None:
            child.send_signal(number)
            timer = threading.Timer(self._grace_s, child.kill)
            timer.daemon = True
            timer.start()
