"""Command lines of stockstream that a user can paste into a shell."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path

NAME = "stockstream"


def command_line(*arguments: str) -> str:
    """A shell command that runs `stockstream` with these arguments: by name if the PATH finds this installation, else by its full path."""
    script = Path(sys.executable).parent / NAME
    found = shutil.which(NAME)
    if found and Path(found).resolve() == script.resolve():
        start = [NAME]
    elif script.exists():
        start = [str(script)]
    else:
        start = [sys.executable, "-m", f"{NAME}.cli"]
    return shlex.join([*start, *arguments])
