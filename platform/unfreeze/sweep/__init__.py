"""The sweep from beginning to end. `run.py` is the main path."""
