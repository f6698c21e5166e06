"""The table of `score`: predictions to be judged, the roster of models and a checkpoint; written after predictions and outcomes.

The records are defined in `stockstream.transforms.scoring.state`.
"""

from stockstream.instance import app
from stockstream.state.changelog_table import StateTable

table = StateTable(app, "score")
