"""Data sets: which exist, how they are found, split and brought to a node."""
