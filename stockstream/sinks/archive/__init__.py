"""The archive: a chain of raw objects for each partition, and processed objects made of them."""
