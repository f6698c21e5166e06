"""The log's rules about time: each stands here once, and the state machines, the views and the settings read it here.

The names of some columns contain them too (`mean_5m`, `return_60s`): a test holds the schema, the page's texts and the models' features to these values.
"""

WINDOW_S = 300
"""Seconds of the rolling window, up to and including its last one. A series ends, and a symbol may change its source, after as long a silence."""
LAGS_S = (1, 5, 10, 30, 60)
"""Seconds over which a row has a return: `return_1s` to `return_60s`."""
FORGET_MS = 24 * 3_600_000
"""By the log clock: every state machine forgets a source that was silent for longer, all of them by the same clock."""
FUTURE_MS = 2_000
"""A tick may be ahead of its record's Kafka time by this much: clocks differ."""
LATENESS_MS = 200
"""How far a source's watermark must pass a second's end before the second closes; the default of STOCKSTREAM_LATENESS_MS."""
REVISE_S = 30
"""How many seconds back a late tick may change; the default of STOCKSTREAM_REVISE_S."""
