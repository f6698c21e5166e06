"""The health of a source on a worker: its state and reason, the time of the next attempt, and the log lines about them."""

from __future__ import annotations

import logging
import random
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import msgspec
from aiokafka.errors import KafkaError

from stockstream.errors import StockstreamError
from stockstream.metrics import Metrics
from stockstream.skipped import shortened

logger = logging.getLogger(__name__)

State = Literal["starting", "running", "idle", "failed", "stopped"]

FIRST_RETRY_S, LAST_RETRY_S = 1.0, 30.0
"""The pause after a first failure, and the longest pause. It doubles with each failure; its second half is random, so that workers do not retry together."""
STEADY_MS = 30_000
"""After an attempt that lasted this long, the pauses start over."""
SILENT_MS = 60_000
"""A source without ticks for this long is idle."""
UNWATCHED_MS = 10_000
"""A source without symbols on the watchlist causes a warning after this long; before, the watchlist may still be being read."""
REMIND_MS = 300_000
"""A source that failed or has no symbols is logged again after this long."""


class Pauses:
    """The pauses between attempts. `chance` returns a random number from 0 to 1."""

    def __init__(self, chance: Callable[[], float]) -> None:
        self._chance, self._wait_s = chance, FIRST_RETRY_S

    def next_s(self, lasted_ms: int) -> float:
        """The pause after a failed attempt that lasted so long, in seconds."""
        if lasted_ms >= STEADY_MS:
            self._wait_s = FIRST_RETRY_S
        pause = self._wait_s * (0.5 + self._chance() / 2)
        self._wait_s = min(2 * self._wait_s, LAST_RETRY_S)
        return pause


class SourceState(msgspec.Struct, kw_only=True, frozen=True):
    """One source of `STOCKSTREAM_SOURCE` as this worker runs it. Times are epoch ms."""

    source: str
    """Its name in the settings and the watchlist."""
    name: str
    """The `source` of its ticks."""
    state: State
    reason: str
    """Why it is in this state; may be empty. A running source has a reason if a part of its work other than its ticks fails."""
    since: int
    """When the state began."""
    next_attempt: int | None
    """When a failed source is tried again; null during an attempt and in every other state."""
    failures: int
    """Attempts that failed since the worker started."""
    symbols: int
    """How many symbols it reads on this worker."""


class SourceHealth:
    """The state of one source. Each change of state or reason is logged in one line.

    A failed source stays `failed` during the next attempts, until the broker confirms ticks of it.

    Args:
        source: the name that the watchlist uses.
        name: the `source` of its ticks.
        metrics: holds `source_up` and `source_failures_total`.
        now_ms: returns epoch ms.
        chance: returns a random number from 0 to 1.
    """

    def __init__(
        self, source: str, name: str, metrics: Metrics, now_ms: Callable[[], int], chance: Callable[[], float] = random.random,
    ) -> None:  # fmt: skip
        self.source, self.name = source, name
        self._metrics, self._now_ms, self._pauses = metrics, now_ms, Pauses(chance)
        self._state: State = "starting"
        self._reason = "waiting for partitions and the watchlist"
        self._since = self._attempt_at = self._active_at = self._logged_at = now_ms()
        self._next_attempt: int | None = None
        self._reminded = False
        """Whether it was logged that the watchlist has no symbol for the source."""
        self._failures = 0
        self._symbols = 0
        self._partitions = ""
        self.ended = False
        self.last_error = ""
        """The reason of the newest failure; empty before the first."""
        self.last_tick_at: int | None = None
        """When the broker last confirmed ticks of it, epoch ms."""
        metrics.source_up(source, False)

    @property
    def is_stopped(self) -> bool:
        """Whether an error that no retry can fix has ended the source."""
        return self._state == "stopped"

    @property
    def failure(self) -> str | None:
        """Why the source has failed or is stopped; None if neither is so."""
        return self._reason if self._state in ("failed", "stopped") else None

    def state(self, trouble: str = "") -> SourceState:
        """The present state. `trouble`: why a part of the source's work fails while its ticks continue; empty if none does."""
        reason = self._reason or (shortened(trouble) if self.failure is None else "")
        return SourceState(
            source=self.source, name=self.name, state=self._state, reason=reason, since=self._since, next_attempt=self._next_attempt,
            failures=self._failures, symbols=self._symbols,
        )  # fmt: skip

    def assigned(self, symbols: int, partitions: int, of: int) -> None:
        """Records how many symbols the source reads on this worker, which has `partitions` of the watchlist's `of` partitions."""
        if symbols != self._symbols:
            logger.info("source %s reads %d %s on this worker", self.source, symbols, "symbol" if symbols == 1 else "symbols")
        before, self._symbols = self._symbols, symbols
        self._partitions = f"{partitions} of {of} partitions" if partitions else ""
        if self._state == "failed" or self.ended:
            return
        if not symbols:
            what = f"the watchlist has no symbol for it in this worker's {self._partitions}" if partitions else "no partition is assigned to this worker"
            self._change("idle", what)
        elif not before or self._state == "idle":
            self._active_at = self._now_ms()
            self._change("starting", "")

    def begin(self) -> None:
        """Records the beginning of an attempt."""
        self._attempt_at = self._active_at = self._now_ms()
        self._next_attempt = None

    def delivered(self) -> None:
        """Records that the broker confirmed ticks of the source."""
        self._active_at = self.last_tick_at = self._now_ms()
        if self._state != "running" and self._symbols:
            self._change("running", "")

    def fail(self, error: BaseException) -> float:
        """Records a failed attempt. Returns the pause until the next one, in seconds."""
        now = self._now_ms()
        pause = self._pauses.next_s(now - self._attempt_at)
        self._failures += 1
        self._metrics.source_failed(self.source)
        self._next_attempt = now + round(pause * 1000)
        self.last_error = reason_of(error)
        self._change("failed", self.last_error)
        return pause

    def stop(self, error: BaseException) -> None:
        """Records that the source has ended because of an error that no retry can fix."""
        self.ended = True
        self._failures += 1
        self._metrics.source_failed(self.source)
        self._next_attempt, self.last_error = None, reason_of(error)
        self._change("stopped", self.last_error)

    def end(self) -> None:
        """Records that the source's stream ended by itself."""
        self.ended = True
        self._change("idle", "its stream has ended")

    def check(self) -> None:
        """Marks a silent source as idle, and repeats warnings that need an operator. Called about once a second."""
        now = self._now_ms()
        if self._state == "running" and now - self._active_at >= SILENT_MS:
            self._change("idle", f"no ticks for {SILENT_MS // 1000} s")
        elif self._state == "failed" and self._next_attempt is None and now - self._attempt_at >= (SILENT_MS if self._symbols else UNWATCHED_MS):
            self._change("idle", "no new error and no ticks since the last attempt")
        if self._state == "stopped" and now - self._logged_at >= REMIND_MS:
            self._logged_at = now
            text = "source %s has been stopped for %d s, until the worker starts with other settings: %s"
            logger.error(text, self.source, (now - self._since) // 1000, self._reason)
        elif self._state == "failed" and now - self._logged_at >= REMIND_MS:
            self._logged_at = now
            logger.error("source %s has failed for %d s in %d attempts: %s", self.source, (now - self._since) // 1000, self._failures, self._reason)
        elif self._is_unwatched and now - self._logged_at >= (REMIND_MS if self._reminded else UNWATCHED_MS):
            self._logged_at, self._reminded = now, True
            logger.warning(
                "source %s has no symbols in this worker's %s: set STOCKSTREAM_SYMBOLS, or run `stockstream watch add SYMBOL --source %s`",
                self.source, self._partitions, self.source,
            )  # fmt: skip

    @property
    def _is_unwatched(self) -> bool:
        return self._state == "idle" and not self._symbols and bool(self._partitions) and not self.ended

    def _change(self, state: State, reason: str) -> None:
        if (state, reason) == (self._state, self._reason):
            return
        before, self._state, self._reason = self._state, state, reason
        now = self._now_ms()
        if state != before:
            self._since = now
        self._logged_at, self._reminded = now, False
        self._metrics.source_up(self.source, state in ("running", "idle"))
        pause = f"; next attempt in {(self._next_attempt - now) / 1000:.1f} s" if state == "failed" and self._next_attempt is not None else ""
        level = logging.ERROR if state in ("failed", "stopped") else logging.INFO
        until = " until the worker starts with other settings" if state == "stopped" else ""
        logger.log(level, "source %s is %s%s%s%s", self.source, state, until, f": {reason}" if reason else "", pause)


def reason_of(error: BaseException) -> str:
    """The error in one bounded line. An unexpected one gets its type, and the place where it was raised."""
    text = shortened(str(error))
    if isinstance(error, StockstreamError) and text:
        return text
    if isinstance(error, (KafkaError, OSError)):
        return f"{type(error).__name__}: {text}" if text else type(error).__name__
    frames = traceback.extract_tb(error.__traceback__)
    place = f" (at {Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {text}{place}" if text else f"{type(error).__name__}{place}"
