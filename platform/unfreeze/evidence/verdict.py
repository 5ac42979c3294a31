"""Does plasticity predict accuracy? The words, fixed beforehand, and the one sentence that says them.

| word         | said when                                                                                          |
| ------------ | -------------------------------------------------------------------------------------------------- |
| supported    | exchanged labels do as well in at most 4 of the 120 exchanges (p ≤ 1/30), β's 95 % interval lies   |
|              | above 0, and P(β > 0) ≥ 0.975                                                                      |
| contradicted | the same below 0: P(β > 0) ≤ 0.025                                                                 |
| undecided    | else; or where there is no number, and then the sentence says why                                  |

β is what one standard deviation more plasticity is worth, size held fixed (`effects`). The sentence is about the first
mode of `MODES` that was measured, so that a sweep makes one claim and not the best of several. Correlations, figures
and the other scores' worth describe and claim nothing. How often each word comes without a cause, and with one, is
measured by ops/bench/verdict.py.
"""

import math
from collections.abc import Sequence

from unfreeze.records import MODES, Pooled, PooledSweeps, ScoreWorth, Worth

SUPPORTED, CONTRADICTED, UNDECIDED = "supported", "contradicted", "undecided"
MAX_P, MIN_POSITIVE = 4 / 120, 0.975

_CLAIMS = {
    SUPPORTED: "Supported: plasticity ({score}) predicts accuracy here",
    CONTRADICTED: "Contradicted: plasticity ({score}) predicts the opposite here, more plastic components do worse",
    UNDECIDED: "Undecided: whether plasticity ({score}) predicts accuracy here is not settled",
}

_POOLED_CLAIMS = {
    SUPPORTED: "Supported: plasticity ({score}) predicts accuracy over these {count} data sets",
    CONTRADICTED: "Contradicted: plasticity ({score}) predicts the opposite over these {count} data sets",
    UNDECIDED: "Undecided: whether plasticity ({score}) predicts accuracy over these {count} data sets is not settled",
}


def verdict_word(worth: Worth) -> str:
    """Supported, contradicted or undecided, by the table above."""
    if worth.p <= MAX_P + 1e-9:
        if worth.low > 0 and worth.positive >= MIN_POSITIVE:
            return SUPPORTED
        if worth.high < 0 and worth.positive <= 1 - MIN_POSITIVE:
            return CONTRADICTED
    return UNDECIDED


def word_of(found: ScoreWorth | None) -> str:
    """The word of the sentence below: undecided, too, where there is no number."""
    return UNDECIDED if found is None or found.worth is None else verdict_word(found.worth)


def pooled_word(pooled: Pooled) -> str:
    """The same words over several data sets: exchanges as above, the same one in every set, and the interval of the
    average set's β in place of the single set's."""
    if pooled.low is not None and pooled.high is not None and pooled.p <= MAX_P + 1e-9:
        if pooled.low > 0:
            return SUPPORTED
        if pooled.high < 0:
            return CONTRADICTED
    return UNDECIDED


def headline(worths: Sequence[ScoreWorth]) -> ScoreWorth | None:
    """The mode of plasticity that the verdict is about; None where none was measured."""
    by_score = {found.score: found for found in worths}
    return next((by_score[mode] for mode in MODES if mode in by_score), None)


def verdict(worths: Sequence[ScoreWorth]) -> str:
    """The sentence, the same wherever it stands: in terminal, report and MLflow."""
    found = headline(worths)
    if found is None:
        return "Undecided: plasticity was not measured, so nothing can be said of what it predicts."
    if found.worth is None:
        return f"Undecided: what plasticity ({found.score}) is worth has no number, since {found.trouble}."
    claim = _CLAIMS[verdict_word(found.worth)].format(score=found.score)
    return (
        f"{claim}: one standard deviation more plasticity is worth {worth_text(found.worth)}, size held fixed; "
        f"P(β > 0) = {found.worth.positive:.2f}, p = {found.worth.p:.3f} by all 120 exchanges of the components’ "
        f"labels, n = {found.num_trials} trials."
    )


def pooled_sentence(found: PooledSweeps) -> str:
    """The verdict over several data sets, in the words of one."""
    pooled = found.pooled
    if pooled is None:
        return "Undecided: no sweep has a number for what plasticity is worth, so there is nothing to pool."
    if pooled.low is None or pooled.high is None:
        return f"Undecided: of these sweeps only {found.names[0]} can be pooled, and it takes two."
    claim = _POOLED_CLAIMS[pooled_word(pooled)].format(score=found.score, count=pooled.num_sets)
    following = "it takes three sets to say what to expect of the next"
    if pooled.next_low is not None and pooled.next_high is not None:
        following = f"on the next one it is expected in [{points(pooled.next_low)}, {points(pooled.next_high)}]"
    return (
        f"{claim}: one standard deviation more plasticity is worth {points(pooled.mean, '+')} points of accuracy "
        f"[{points(pooled.low)}, {points(pooled.high)}] on the average set, size held fixed, with a standard deviation "
        f"of {points(pooled.spread)} between sets; {following}; p = {pooled.p:.3f} by all 120 exchanges of the "
        f"components’ labels, in every set at once."
    )


def worth_text(worth: Worth) -> str:
    """``+1.2 points of accuracy [−0.3, 2.6]``."""
    return f"{points(worth.mean, '+')} points of accuracy [{points(worth.low)}, {points(worth.high)}]"


def points(accuracy: float, sign: str = "") -> str:
    """A share as points with one digit and a real minus sign."""
    text = f"{100 * accuracy:{sign}.1f}" if math.isfinite(accuracy) else f"{'-' if accuracy < 0 else ''}∞"
    return f"{sign and '+'}0.0" if text.endswith("-0.0") else text.replace("-", "−")
