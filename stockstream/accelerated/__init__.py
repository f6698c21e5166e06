"""What is compiled, each None where it was not built: then Python and numpy do the same, more slowly.

`batches` gives the records of Kafka's record batches, `ticks` reads plain ticks for `columns`, `ring` does for `windows` what is done to each cell. They are
built with the package where there is a C compiler (docs/decisions/performance-log.md, 0012).
"""

from __future__ import annotations

from types import ModuleType

batches: ModuleType | None
ring: ModuleType | None
ticks: ModuleType | None
try:
    from stockstream.accelerated import _batches as batches
    from stockstream.accelerated import _ring as ring
    from stockstream.accelerated import _ticks as ticks

    missing = ""
except ImportError as error:
    batches = ring = ticks = None
    missing = str(error)
    """Why they are not there; empty where they are."""
