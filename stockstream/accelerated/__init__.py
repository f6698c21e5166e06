"""The compiled parts. A part that was not built is None; then Python and numpy compute the same, more slowly.

`batches` reads the records of Kafka's record batches, and `ring` does the work on each cell of `windows`. They are built with the package if there is a C
compiler (docs/decisions/performance-log.md, 0012).
"""

from __future__ import annotations

from types import ModuleType

batches: ModuleType | None
ring: ModuleType | None
try:
    from stockstream.accelerated import _batches as batches
except ImportError:
    batches = None
try:
    from stockstream.accelerated import _ring as ring
except ImportError:
    ring = None

missing = tuple(name for name, part in (("batches", batches), ("ring", ring)) if part is None)
"""Names of the parts that were not built."""
