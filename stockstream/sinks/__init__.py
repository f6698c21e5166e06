"""Where results go besides Kafka: one technology a file."""
