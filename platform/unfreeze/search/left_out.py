"""Leave one data set out: how many trials a search of it would have been saved by what the others had taught.

Nobody knows what every configuration of the set left out would have come to, but the model says what is possible after
the trials that were run there. So the search is replayed on truths drawn from that posterior, over all sets of whole
components, once without and once with what the others' trials say (`search.learn_from`), with the same noise. Both are
the model's own truths, and where a sweep had few trials they lie near the model's prior, which flatters both searches;
exhaustive tables (ops/bench/sets.py) do not.
"""

from collections.abc import Mapping
from dataclasses import replace
from statistics import fmean

import numpy as np
from scipy import stats
from scipy.special import expit, logit
from threadpoolctl import threadpool_limits

from unfreeze.evidence.model import Effects, Points, Posterior, Terms
from unfreeze.evidence.transfer import component_effects, expected_of_components, pool
from unfreeze.evidence.worth import by_switch, count_groups, fit_trials, weighed_trials
from unfreeze.records import COMPONENTS, Evidence, LeftOut, PooledSweeps
from unfreeze.search.candidates import at_every_rate, every_subset, promising
from unfreeze.search.prior import component_means, prior_scores

CLOSE = 0.005  # of the best accuracy: the search has arrived
NUM_TRIALS, NUM_TRUTHS, NUM_RATES = 24, 32, 7


@threadpool_limits.wrap(limits=1, user_api="blas")  # the same bits on every machine
def leave_each_out(evidence: Mapping[str, Evidence], pooled: PooledSweeps) -> PooledSweeps:
    """``pooled`` with what each of its sweeps would have been saved; as it was where there are fewer than two."""
    if len(pooled.names) < 2:
        return pooled
    scores = {name: _scores(evidence[name], pooled.score) for name in pooled.names}
    effects = {name: component_effects(evidence[name].trials, evidence[name].model, scores[name]) for name in scores}
    known = {name: own for name, own in effects.items() if own is not None}
    return replace(pooled, left_out=tuple(_leave_out(name, evidence[name], scores[name], known) for name in known))


def _scores(found: Evidence, score: str) -> dict[str, float]:
    return component_means(prior_scores(score, found.plasticity, num_blocks=found.model.num_blocks))


def _leave_out(name: str, found: Evidence, scores: Mapping[str, float], known: Mapping[str, Effects]) -> LeftOut:
    kept = weighed_trials(found.trials, found.model)
    groups = count_groups(kept, found.model)
    sizes = by_switch(found.model.parameters, found.model.num_blocks, groups)
    own = np.array([scores[component] for component in COMPONENTS])
    after = fit_trials(kept, np.repeat(own[:, None], groups, axis=1), sizes)
    rates = [trial.spec.learning_rate for trial, _ in kept]
    cells = every_cell(np.unique(np.linspace(np.log10(min(rates)), np.log10(max(rates)), NUM_RATES)))
    whole = Points(np.repeat(cells.switches, groups, axis=1), cells.log_rates)
    truths = expit(after.samples(whole, NUM_TRUTHS))
    learned = expected_of_components(pool({other: e for other, e in known.items() if other != name}), scores)
    terms = Terms.of(own, sizes.sum(1), np.arange(len(COMPONENTS)), rates=(min(rates), max(rates)))
    return trials_saved(name, cells, truths, after.noise, terms, learned)


def every_cell(log_rates: np.ndarray) -> Points:
    """Every set of whole components at every rate."""
    subsets = every_subset(len(COMPONENTS), np.any)
    assert subsets is not None
    return at_every_rate(subsets, log_rates)


def trials_saved(name: str, cells: Points, truths: np.ndarray, noise: float, terms: Terms, learned: Effects) -> LeftOut:
    """Of searches on each of ``truths`` (T, cells), accuracies; ``noise``: of a run, in logits."""
    counts = []
    for number, truth in enumerate(truths):
        luck = noise * np.random.default_rng(number).normal(size=NUM_TRIALS)
        counts.append([count_trials(own, cells, truth, luck) for own in (terms, replace(terms, before=learned))])
    saved = np.subtract(*np.transpose(counts)).astype(np.float64)
    half = float(stats.t.ppf(0.975, len(saved) - 1) * stats.sem(saved)) if len(saved) > 1 else np.inf
    return LeftOut(
        sweep=name,
        alone=fmean(alone for alone, _ in counts),
        learned=fmean(learned for _, learned in counts),
        saved=float(saved.mean()),
        low=float(saved.mean()) - half,
        high=float(saved.mean()) + half,
        num_truths=len(truths),
    )


def count_trials(terms: Terms, cells: Points, truth: np.ndarray, luck: np.ndarray) -> int:
    """Trials before what the model expects most of is within half a point of the best cell; all of them if it never is.

    ``luck``: of the first run, the second and so on, in logits.
    """
    tried: list[int] = []
    values: list[float] = []
    while True:
        posterior = Posterior(terms, cells[np.array(tried, dtype=int)], np.array(values))
        every = posterior.outlook(cells)
        if truth[np.argmax(every.mean)] >= truth.max() - CLOSE or len(tried) == len(luck):
            return len(tried)
        tried.append(int(np.argmax(posterior.knowledge_gradient(every, promising(every)))))
        values.append(float(expit(logit(truth[tried[-1]]) + luck[len(values)])))
