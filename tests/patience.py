"""How long tests wait for what must come: a bound is for what never comes, and a machine whose host has taken its processor for a while is only slow."""

from __future__ import annotations

import os
from pathlib import Path

PATIENCE_S = 120.0


def stolen_s() -> float:
    """Seconds that the host of this virtual machine has given to others since its start, mean of the processors; 0 where nothing says so."""
    stat = Path("/proc/stat")
    return int(stat.read_text().split("\n", 1)[0].split()[8]) / os.sysconf("SC_CLK_TCK") / (os.cpu_count() or 1) if stat.exists() else 0.0
