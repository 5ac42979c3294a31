"""Data sets: what exists, how it is split, and how images reach the model."""
