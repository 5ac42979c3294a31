"""Statistics over a sweep's trials: plain values in, records out, no I/O."""
