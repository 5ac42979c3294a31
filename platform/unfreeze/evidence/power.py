"""What would settle an undecided verdict: the power that ops/bench/verdict.py measured, as a small table.

Effects are multiples of what the published table (arXiv 2602.06883) implies for one standard deviation of plasticity. A
test compares the table with ops/bench/results/verdict.json.
"""

from collections.abc import Sequence

from unfreeze.evidence.verdict import UNDECIDED, headline, verdict_word
from unfreeze.records import ScoreWorth

ENOUGH = 0.8

# (multiple of the published effect, search.space, trials of a set, data sets) → share called supported.
POWER: dict[tuple[float, str, int, int], float] = {
    (1.0, "components", 16, 1): 0.0,
    (1.0, "components", 16, 3): 0.12,
    (1.0, "components", 16, 11): 0.08,
    (1.0, "components", 32, 1): 0.06,
    (1.0, "components", 32, 3): 0.1,
    (1.0, "components", 32, 11): 0.08,
    (1.0, "components", 64, 1): 0.02,
    (1.0, "components", 64, 3): 0.02,
    (1.0, "components", 64, 11): 0.2,
    (1.0, "depth", 16, 1): 0.04,
    (1.0, "depth", 16, 3): 0.12,
    (1.0, "depth", 16, 11): 0.28,
    (1.0, "depth", 32, 1): 0.04,
    (1.0, "depth", 32, 3): 0.08,
    (1.0, "depth", 32, 11): 0.28,
    (1.0, "depth", 64, 1): 0.06,
    (1.0, "depth", 64, 3): 0.08,
    (1.0, "depth", 64, 11): 0.4,
    (1.0, "blocks", 16, 1): 0.04,
    (1.0, "blocks", 16, 3): 0.06,
    (1.0, "blocks", 16, 11): 0.08,
    (1.0, "blocks", 32, 1): 0.04,
    (1.0, "blocks", 32, 3): 0.06,
    (1.0, "blocks", 32, 11): 0.2,
    (1.0, "blocks", 64, 1): 0.06,
    (1.0, "blocks", 64, 3): 0.1,
    (1.0, "blocks", 64, 11): 0.24,
    (4.0, "components", 16, 1): 0.16,
    (4.0, "components", 16, 3): 0.36,
    (4.0, "components", 16, 11): 0.76,
    (4.0, "components", 32, 1): 0.24,
    (4.0, "components", 32, 3): 0.44,
    (4.0, "components", 32, 11): 0.72,
    (4.0, "components", 64, 1): 0.32,
    (4.0, "components", 64, 3): 0.44,
    (4.0, "components", 64, 11): 0.68,
    (4.0, "depth", 16, 1): 0.16,
    (4.0, "depth", 16, 3): 0.5,
    (4.0, "depth", 16, 11): 0.92,
    (4.0, "depth", 32, 1): 0.38,
    (4.0, "depth", 32, 3): 0.66,
    (4.0, "depth", 32, 11): 1.0,
    (4.0, "depth", 64, 1): 0.64,
    (4.0, "depth", 64, 3): 0.88,
    (4.0, "depth", 64, 11): 1.0,
    (4.0, "blocks", 16, 1): 0.22,
    (4.0, "blocks", 16, 3): 0.44,
    (4.0, "blocks", 16, 11): 0.8,
    (4.0, "blocks", 32, 1): 0.26,
    (4.0, "blocks", 32, 3): 0.6,
    (4.0, "blocks", 32, 11): 0.84,
    (4.0, "blocks", 64, 1): 0.5,
    (4.0, "blocks", 64, 3): 0.82,
    (4.0, "blocks", 64, 11): 1.0,
}


def settling(worths: Sequence[ScoreWorth]) -> str:
    """What an undecided verdict takes to be settled; empty where it is, or has no number."""
    found = headline(worths)
    if found is None or found.worth is None or verdict_word(found.worth) != UNDECIDED:
        return ""
    return what_would_settle()


def what_would_settle() -> str:
    """Of each effect the least that was enough, in words; or how far it is from that."""
    return (
        "What would settle it, in simulated sweeps: "
        + "; ".join(_least(times) for times in sorted({times for times, *_ in POWER}))
        + "."
    )


def _least(times: float) -> str:
    effect = "an effect of the published size" if times == 1 else f"one {times:g} times as large"
    own = {place[1:]: power for place, power in POWER.items() if place[0] == times}
    enough = [place for place, power in own.items() if power >= ENOUGH]
    if not enough:
        space, trials, sets = max(own, key=lambda place: own[place])
        return f"{effect} is found in {max(own.values()):.0%} at most ({_said(space, trials, sets)})"
    space, trials, sets = min(enough, key=lambda place: place[1] * place[2])
    return f"{effect} is found in {own[space, trials, sets]:.0%} by {_said(space, trials, sets)}"


def _said(space: str, trials: int, sets: int) -> str:
    return f"{trials} trials of search.space={space}" + (f" on each of {sets} data sets" if sets > 1 else "")
