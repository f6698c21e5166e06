"""The `stockstream` commands, one a file; each exposes `command: click.Command` and raises `StockstreamError`."""
