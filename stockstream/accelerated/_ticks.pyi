from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

def read(records: Sequence[Any]) -> tuple[Any, ...] | None: ...
def coded(offsets: NDArray[np.int32], data: NDArray[np.uint8]) -> tuple[list[str], Ints]: ...
def spread(texts: list[str], which: Ints) -> tuple[NDArray[np.int32], NDArray[np.uint8]]: ...
