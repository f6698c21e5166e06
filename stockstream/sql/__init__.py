"""SQL over the archive: what the views are, the engine that runs queries, and how results are printed and stored."""
