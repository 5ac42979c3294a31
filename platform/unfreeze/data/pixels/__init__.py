"""From files to batches on a device: decoding, streaming, crops, corruptions, prefetch."""
