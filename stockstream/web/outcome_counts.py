"""Running counts of outcomes by model; each outcome counts once."""

from __future__ import annotations

from collections import OrderedDict

from stockstream.records import Outcome
from stockstream.web.answers import OutcomeCount

MAX_MODELS = 1_000


class OutcomeCounts:
    """Counts by model, version, role and horizon.

    Args:
        max_judged: the most identities (symbol, model, version, horizon) to remember; beyond, the oldest are forgotten.
    """

    def __init__(self, max_judged: int) -> None:
        self._max_judged = max_judged
        self._counts: dict[tuple[str, str, str, int], OutcomeCount] = {}
        self._judged: OrderedDict[tuple[str, str, str, int], int] = OrderedDict()
        self.forgotten = 0
        """Outcomes whose identity was forgotten, so that a repeat would count again, or whose model is beyond MAX_MODELS."""

    def count(self, item: Outcome) -> None:
        """Counts an outcome; a repeat is not counted again."""
        identity = (item.symbol, item.model, item.version, item.horizon_s)
        if item.as_of <= self._judged.get(identity, -1):
            return
        self._judged[identity] = item.as_of
        self._judged.move_to_end(identity)
        if len(self._judged) > self._max_judged:
            self._judged.popitem(last=False)
            self.forgotten += 1
        key = (item.model, item.version, item.role, item.horizon_s)
        count = self._counts.get(key)
        if count is None:
            if len(self._counts) >= MAX_MODELS:
                self.forgotten += 1
                return
            count = self._counts[key] = OutcomeCount(model=item.model, version=item.version, role=item.role, horizon_s=item.horizon_s)
        count.outcomes += 1
        if item.realised_return:
            count.moved += 1
            count.hits += item.predicted_return > 0 if item.realised_return > 0 else item.predicted_return < 0
        count.mean_absolute_error += (abs(item.predicted_return - item.realised_return) - count.mean_absolute_error) / count.outcomes

    def by_model(self) -> list[OutcomeCount]:
        """The counts in the order of model, version, role and horizon."""
        return [self._counts[key] for key in sorted(self._counts)]
