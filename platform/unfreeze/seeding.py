"""Seeds derived from names, so that a number never depends on the order in which things happened to run."""

import hashlib


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed that is a pure function of ``parts``.

    ``derive_seed(sweep_seed, "sampler", trial_index)`` gives every consumer of randomness a stream of its own; adding
    a consumer moves no other. (`hash()` would change from process to process.)
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
