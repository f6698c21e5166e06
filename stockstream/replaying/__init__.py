"""Publishes recordings: what `stockstream replay` reads besides files, and how it writes."""
