"""Building a timm model, reading its weights, and the embedded default."""
