"""Which components of a pretrained Vision Transformer to unfreeze, measured."""
