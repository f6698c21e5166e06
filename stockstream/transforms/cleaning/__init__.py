"""Decides about every tick: valid, duplicate, late, whose, and what closes."""
