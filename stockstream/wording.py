"""Formats counts for messages."""

from __future__ import annotations


def counted(count: int, noun: str) -> str:
    """The count with its noun, in the plural unless the count is 1: `1 symbol`, `1,200 symbols`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
