"""The runtime of the agents: stages, the tables that hold their state, and the reading of frames and changelogs."""
