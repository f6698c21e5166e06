"""Scoring: predictions for closed seconds, and their judgement at their horizon."""
