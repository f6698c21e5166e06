"""The agents, one a file; they meet only at topics."""
