"""How a worker ends by itself: one line that is sure to be written, and a status. It holds global state: the file that takes the line too."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from pathlib import Path
from typing import NoReturn

from stockstream.errors import StockstreamError

logger = logging.getLogger(__name__)

DO_NOT_RESTART = 78
"""Exit status (EX_CONFIG) of a start that only another setting can help."""

_reason_file: Path | None = None


def write_reason_to(path: Path | None) -> None:
    """Names the file that takes the reason, for a supervisor."""
    global _reason_file
    _reason_file = path


def exit_now(status: int, said: str) -> NoReturn:
    """Ends the process at once, without any clean-up that could write, and with one line that is sure to be written."""
    _keep(said)
    if logging.getLogger().handlers:
        logger.critical("%s", said)
        for handler in logging.getLogger().handlers:
            with contextlib.suppress(OSError, ValueError):               # nobody reads there any more
                handler.flush()
    else:
        _print(f"stockstream: {said}")
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.flush()
    os._exit(status)


def stop_start(error: StockstreamError) -> NoReturn:
    """Ends the start with one line. The status tells a supervisor whether starting again can help."""
    exit_now(1 if error.retriable else DO_NOT_RESTART, " ".join(str(error).split()))


def _keep(said: str) -> None:
    if _reason_file is not None:
        with contextlib.suppress(OSError):
            _reason_file.write_text(said + "\n")


def _print(line: str) -> None:
    """To the real standard error: Faust puts a logger in the place of `sys.stderr`, which drops what is below its level."""
    with contextlib.suppress(OSError, ValueError):
        print(line, file=sys.__stderr__, flush=True)
