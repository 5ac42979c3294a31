"""From the trials of one sweep to what another may expect of its components."""

from collections.abc import Mapping, Sequence

import numpy as np
from threadpoolctl import threadpool_limits

from unfreeze.evidence.model import Effects, standardised
from unfreeze.evidence.worth import by_switch, count_groups, fit_trials, weighed_trials
from unfreeze.records import COMPONENTS, Learned, ModelFacts, TrialRecord


def component_effects(trials: Sequence[TrialRecord], model: ModelFacts, scores: Mapping[str, float]) -> Effects | None:
    """β of ``scores`` (component → score), and what it leaves of each whole component's effect; None without a finished
    trial of components.

    What a component's blocks differ by is no part of it: another set of images turns that around (2303.08566).
    """
    kept = weighed_trials(trials, model)
    if not kept:
        return None
    num_groups = count_groups(kept, model)
    score = np.array([[scores[name]] * num_groups for name in COMPONENTS])
    sizes = by_switch(model.parameters, model.num_blocks, num_groups)
    with threadpool_limits(limits=1, user_api="blas"):  # the same bits on every machine
        return fit_trials(kept, score, sizes).component_effects()


def pool(found: Mapping[str, Effects]) -> Learned:
    """The mean over sweeps, each counting the same, with its covariance: how well each is known, and how much they
    differ."""
    means = np.stack([effects.mean for effects in found.values()])
    covariance = np.mean([effects.covariance for effects in found.values()], axis=0)
    if len(found) > 1:
        covariance = covariance + np.diag(means.var(axis=0, ddof=1))
    return Learned(
        sweeps=tuple(found),
        mean=tuple(means.mean(axis=0).tolist()),
        covariance=tuple(map(tuple, (covariance / len(found)).tolist())),
    )


def expected_of_components(learned: Learned, scores: Mapping[str, float]) -> Effects:
    """Of each whole component, where its score is as in ``scores``."""
    score = standardised(np.array([scores[name] for name in COMPONENTS]))
    effects = Effects(np.array(learned.mean), np.array(learned.covariance))
    return effects.through(np.column_stack([score, np.eye(len(COMPONENTS))]))
