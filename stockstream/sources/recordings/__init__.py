"""Recorded trades and bars of every make as ticks: `files` reads rows, `makes` recognises whose they are, `recording` makes ticks of them."""
