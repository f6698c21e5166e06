"""One-second bars and the rolling 5-minute windows."""
