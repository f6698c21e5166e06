"""The pipeline over a recording, without a broker: what is read, what is computed, and the Parquet that is written."""
