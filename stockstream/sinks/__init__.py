"""Destinations of results other than Kafka: one technology per file."""
