"""What to try next: the space, the fixed trials, the sampler, early stopping."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unfreeze.search.evidence_sampler import EvidenceSampler

__all__ = ["EvidenceSampler"]


def __getattr__(name: str) -> Any:
    """`EvidenceSampler` on first use: importing a room of this package costs no Optuna."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from unfreeze.search.evidence_sampler import EvidenceSampler

    return EvidenceSampler
