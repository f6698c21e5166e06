"""The compiled part. If it was not built it is None, and aiokafka does the same, more slowly.

`batches` reads the records of Kafka's record batches. It is built with the package if there is a C compiler.
"""

from __future__ import annotations

from types import ModuleType

batches: ModuleType | None
try:
    from stockstream.accelerated import _batches as batches
except ImportError:
    batches = None

missing = () if batches is not None else ("batches",)
"""Names of the parts that were not built."""
