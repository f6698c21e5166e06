"""Our commands as a user can paste them into the shell that runs us."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path

NAME = "stockstream"


def command_line(*arguments: str) -> str:
    """The words of a shell command that runs `stockstream` with these arguments: by its name where that finds this installation, else by its full path."""
    script = Path(sys.executable).parent / NAME
    found = shutil.which(NAME)
    if found and Path(found).resolve() == script.resolve():
        start = [NAME]
    elif script.exists():
        start = [str(script)]
    else:
        start = [sys.executable, "-m", f"{NAME}.cli"]
    return shlex.join([*start, *arguments])
