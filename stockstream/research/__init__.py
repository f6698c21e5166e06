"""The archive in Python, for notebooks: `Archive` gives bars, ticks, windows, features and the answers to SQL as pandas, Arrow or polars.

It only reads. Importing it loads neither pandas nor DuckDB nor Faust: each is loaded by the first call that needs it.
"""

from stockstream.research.archive import Archive

__all__ = ["Archive"]
