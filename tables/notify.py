"""The table of `notify`, its ledger: how far each route is in `alerts`; written after each notice.

The records are defined in `stockstream.notifying.positions`.
"""

from stockstream.instance import app
from stockstream.state.changelog_table import StateTable

table = StateTable(app, "notify")
