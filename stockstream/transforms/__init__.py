"""Pure functions and state machines on columns: no Kafka, no clock, no I/O."""
