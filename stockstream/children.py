"""Child processes that never outlive this one."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import IO

_WATCHDOG = 'read -r order || kill -9 "$0"'         # its input closes without a line when this process dies, and then it kills the child


class Child:
    """A process in a session of its own: the terminal's Ctrl-C does not reach it, and it dies with this process, even after SIGKILL (not on Windows).

    `output` receives its standard output and error; None: it inherits this process's. `environment` is added to this process's.
    """

    def __init__(self, command: Sequence[str], *, output: IO[bytes] | None = None, environment: Mapping[str, str] | None = None) -> None:
        error = None if output is None else subprocess.STDOUT
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=error, env=os.environ | dict(environment or {}), start_new_session=True
        )
        self._watchdog: subprocess.Popen[bytes] | None = None
        if sys.platform != "win32":
            self._watchdog = subprocess.Popen(["/bin/sh", "-c", _WATCHDOG, str(self.pid)], stdin=subprocess.PIPE, start_new_session=True)

    @property
    def pid(self) -> int:
        return self._process.pid

    def poll(self) -> int | None:
        """Exit status; None while it runs; the negative signal number if a signal ended it."""
        status = self._process.poll()
        if status is not None:
            self._dismiss_watchdog()
        return status

    def wait(self, timeout_s: float | None = None) -> int:
        """Exit status once it has ended. Raises `subprocess.TimeoutExpired`."""
        status = self._process.wait(timeout_s)
        self._dismiss_watchdog()
        return status

    def send_signal(self, number: signal.Signals) -> None:
        """Sends a signal; does nothing if the process has ended."""
        self._process.send_signal(number)

    def kill(self) -> None:
        """Sends SIGKILL; does nothing if the process has ended."""
        self._process.kill()

    def stop(self, grace_s: float) -> int:
        """Sends SIGTERM, and SIGKILL after `grace_s` seconds. Returns the exit status."""
        self._process.terminate()
        try:
            return self.wait(grace_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self.wait()

    def _dismiss_watchdog(self) -> None:
        watchdog, self._watchdog = self._watchdog, None
        if watchdog is not None:
            with contextlib.suppress(BrokenPipeError):      # it may have been killed from outside
                watchdog.communicate(b"done\n")
