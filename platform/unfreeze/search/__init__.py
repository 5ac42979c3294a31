"""What to try next: the space, the first points, the sampler, early stopping and the choice at the end."""
