"""Yahoo Finance as a source: its stream, and its REST service."""
