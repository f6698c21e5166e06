"""The runtime of the agents: stages, their tables, versioned state records and the index of a changelog."""
