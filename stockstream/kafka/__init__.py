"""Access to Kafka outside Faust: clients, topics, the embedded broker, compacted topics."""
