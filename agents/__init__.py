"""The agents, one per file. They exchange data only through topics."""
