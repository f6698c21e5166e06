"""The table of `clean`: a partition's whole state at a raw offset, as a snapshot about once a second, after the frame.

The records are defined in `stockstream.transforms.cleaning.state`.
"""

from stockstream.instance import app
from stockstream.state.changelog_table import StateTable

table = StateTable(app, "clean")
