"""The batch path: raw records of some dates as processed Parquet, by the pure functions of the pipeline."""
