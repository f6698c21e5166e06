"""The table of `aggregate`: buckets of closed seconds, and a checkpoint; written after the rows of a frame's closings.

The records are defined in `stockstream.transforms.windows.state`.
"""

from stockstream.instance import app
from stockstream.state.changelog_table import StateTable

table = StateTable(app, "aggregate")
