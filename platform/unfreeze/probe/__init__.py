"""Linear probes at the output of every component."""
