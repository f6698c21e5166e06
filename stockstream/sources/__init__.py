"""Market-data sources: one technology per file, all behind `base.MarketDataSource`."""
