"""The rules: rows of closed seconds in, alerts and market summaries out."""
