"""The table of `detect`: buckets of open alerts, and a checkpoint; written after the alerts.

The records are defined in `stockstream.transforms.rules.state`.
"""

from stockstream.instance import app
from stockstream.state.changelog_table import StateTable

table = StateTable(app, "detect")
