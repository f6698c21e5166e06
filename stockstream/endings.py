"""How a worker ends itself: with one line that is certain to be written, and an exit status. Holds global state: the reason file."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from pathlib import Path
from typing import NoReturn

from stockstream.errors import StockstreamError
from stockstream.wording import one_line

logger = logging.getLogger(__name__)

INTERRUPTED = 130
"""Exit status after Ctrl-C, as of the shells: 128 + SIGINT."""
DO_NOT_RESTART = 78
"""Exit status (EX_CONFIG) of a configuration error, which restarting cannot fix."""

_reason_file: Path | None = None


def write_reason_to(path: Path | None) -> None:
    """Sets the file in which the worker leaves the reason of its end for a supervisor."""
    global _reason_file
    _reason_file = path


def exit_now(status: int, line: str) -> NoReturn:
    """Ends the process at once, after writing one line, and without any clean-up that could write to Kafka."""
    _keep(line)
    if logging.getLogger().handlers:
        logger.critical("%s", line)
        for handler in logging.getLogger().handlers:
            with contextlib.suppress(OSError, ValueError):               # the reader of the stream may be gone
                handler.flush()
    else:
        _print(f"stockstream: {line}")
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.flush()
    os._exit(status)


def stop_start(error: StockstreamError) -> NoReturn:
    """Ends the start with one line. The exit status shows a supervisor whether a restart can help."""
    exit_now(1 if error.retriable else DO_NOT_RESTART, one_line(error))


def _keep(line: str) -> None:
    if _reason_file is not None:
        with contextlib.suppress(OSError):
            _reason_file.write_text(line + "\n")


def _print(line: str) -> None:
    """Prints to the real standard error, because Faust replaces `sys.stderr` by a logger that drops lines below its level."""
    with contextlib.suppress(OSError, ValueError):
        print(line, file=sys.__stderr__, flush=True)
