"""Brings a foreign topic into `ticks.raw`: mapping, merging in the order of time, and sending in transactions."""
