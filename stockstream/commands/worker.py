"""`stockstream worker`: a Faust worker as a child process, started again when it fails."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from types import FrameType

import click

from stockstream.children import Child
from stockstream.settings import load_settings

DELAYS_S = (1.0, 2.0, 4.0, 8.0, 10.0)
"""Waits before the first, second, ... start in a row; the last one repeats."""
HEALTHY_S = 60.0
"""A worker that ran for so long has failed for a new reason: the waits begin anew."""
STOP_GRACE_S = 10.0
"""SIGTERM ends a worker in less (docs/reliability.md); then comes SIGKILL."""
NO_RESTART_STATUS = 78
"""A worker that ends with this (EX_CONFIG of sysexits.h) has said what a person must change first."""


class Supervisor:
    """Runs one command at a time and starts it again when it fails. SIGTERM and SIGINT are handed on, once, and then no child is left.

    `say` takes one line for the user; `delays_s` are the waits before starts in a row.
    """

    def __init__(self, command: Sequence[str], say: Callable[[str], None], delays_s: Sequence[float] = DELAYS_S, grace_s: float = STOP_GRACE_S) -> None:
        self._command, self._say, self._delays_s, self._grace_s = command, say, delays_s, grace_s
        self._child: Child | None = None
        self._asked: signal.Signals | None = None

    def run(self, *, restart: bool) -> int:
        """Until the command ends well, or we are asked to end, or `restart` is false; the exit status, 128 + n after signal n. Main thread only."""
        before = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            return self._run(restart)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            if self._child is not None:
                self._child.stop(self._grace_s)

    def _run(self, restart: bool) -> int:
        failures = 0
        while True:
            started = time.monotonic()
            self._child = Child(self._command)
            if self._asked is not None:                 # the signal came before there was a child to hand it to
                self._hand_on(self._asked)
            status = self._child.wait()
            self._child = None
            status = 128 - status if status < 0 else status
            if self._asked is not None or status in (0, NO_RESTART_STATUS) or not restart:
                return 0 if self._asked is not None and status == 128 + self._asked else status
            failures = 1 if time.monotonic() - started >= HEALTHY_S else failures + 1
            delay = self._delays_s[min(failures, len(self._delays_s)) - 1]
            self._say(f"the worker ended with status {status}; it is started again in {delay:g} s")
            until = time.monotonic() + delay
            while time.monotonic() < until and self._asked is None:
                time.sleep(0.05)
            if self._asked is not None:
                return 0

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        if self._asked is None:
            self._asked = signal.Signals(number)
            self._hand_on(self._asked)

    def _hand_on(self, number: signal.Signals) -> None:
        child = self._child
        if child is not None:
            child.send_signal(number)
            timer = threading.Timer(self._grace_s, child.kill)
            timer.daemon = True
            timer.start()


def worker_command(host: str, port: int, loglevel: str, *, web: bool) -> list[str]:
    """The command line of one Faust worker on this Python."""
    command = [sys.executable, "-m", "faust", "-A", "stockstream", "worker", "-l", loglevel]
    return [*command, "--web-host", host, "--web-bind", host, "--web-port", str(port)] if web else [*command, "--without-web"]


@click.command()
@click.option("--supervise/--once", default=True, show_default=True, help="Start the worker again when it fails, or run it once.")
@click.option("--web-port", type=click.IntRange(1, 65_535), help="Port of the views.  [default: STOCKSTREAM_WEB_PORT]")
@click.option("--web-host", help="Address that the views bind to.  [default: STOCKSTREAM_WEB_HOST]")
@click.option("--without-web", is_flag=True, help="No views: this worker tails nothing for them.")
@click.option("-l", "--loglevel", type=click.Choice(["crit", "error", "warn", "info", "debug"]), default="info", show_default=True, help="What is logged.")
def command(supervise: bool, web_port: int | None, web_host: str | None, without_web: bool, loglevel: str) -> int:
    """Run a worker, and start it again when it fails.

    The same as `faust -A stockstream worker`, as a child process: when it leaves its group to be safe, or crashes, it is started again after
    1, 2, 4, 8 and then every 10 seconds. SIGTERM and Ctrl-C end it, with the worker's own exit code.
    """
    settings = load_settings()
    line = worker_command(web_host or settings.web_host, web_port or settings.web_port, loglevel, web=not without_web)
    return Supervisor(line, lambda text: click.echo(f"stockstream: {text}", err=True)).run(restart=supervise)
