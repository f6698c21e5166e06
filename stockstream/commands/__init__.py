"""The `stockstream` commands, one per file. Each exposes `command: click.Command` and raises `StockstreamError`."""
