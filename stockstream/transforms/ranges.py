"""What a tick's fields may hold: `validation` rejects what is beyond, `columns` decodes within, and the published schema says so."""

MAX_SYMBOL = 32
MAX_SOURCE = 128
MAX_TEXT = 1_024
"""Characters of exchange, condition, currency and session: what is kept of a tick must fit into a message. No record of as many bytes holds a longer text."""
MIN_PRICE, MAX_PRICE = 1e-9, 1e9
MAX_SIZE = 10**11
"""Sums of sizes stay within int64 for 92 million ticks of the largest size in one window."""
MAX_QUOTE_SIZE = 1e12
MAX_DAY_VOLUME = 10**15
MAX_TIME = 1 << 42
"""The year 2109 in epoch milliseconds: a time in microseconds is beyond it."""
MAX_INT = (1 << 63) - 1
