"""What to try next: the space, the first points, the sampler, early stopping."""
