"""Coefficients against SciPy and against other formulas for the partial ones; what counts as a point."""

import math
import random
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from unfreeze.evidence.correlate import agreement, correlate, describe, score_selections
from unfreeze.records import COMPONENTS, PlasticityRow, PlasticityTable, TrialState


def by_name(correlations, mode="reference"):
    return {c.name: c for c in correlations if c.mode == mode}


def random_trials(build_trial, num=25, *, seed=0):
    """Distinct unions of components and block ranges with accuracies rounded so that there are ties."""
    rng = random.Random(seed)
    texts = list(COMPONENTS)
    while len(texts) < num:
        terms = [f"{name}@{rng.randrange(2)}-{2 + rng.randrange(2)}" for name in sorted(rng.sample(COMPONENTS, 2))]
        text = "+".join(terms)
        if text not in texts:
            texts.append(text)
    return [build_trial(i, text, round(rng.uniform(0.5, 0.9), 2)) for i, text in enumerate(texts)]


class TestAgainstScipy:
    def test_selections(self, build_trial, evidence, model):
        trials = random_trials(build_trial)
        found = by_name(correlate(evidence.plasticity, trials, model))["selections"]
        x, y, _ = self.points(trials, evidence.plasticity, model)
        assert found.n == len(x)
        assert found.spearman == pytest.approx(stats.spearmanr(x, y).statistic)
        assert found.kendall == pytest.approx(stats.kendalltau(x, y).statistic)

    def test_partial(self, build_trial, evidence, model):
        trials = random_trials(build_trial)
        found = by_name(correlate(evidence.plasticity, trials, model))["selections_size_partialled"]
        x, y, z = self.points(trials, evidence.plasticity, model)
        # Spearman: Pearson of what a straight line through the ranks of log size leaves of both sides' ranks.
        ranks = [stats.rankdata(side) for side in (x, y, np.log(z))]
        left = [side - np.polyval(np.polyfit(ranks[2], side, 1), ranks[2]) for side in ranks[:2]]
        assert found.spearman == pytest.approx(stats.pearsonr(*left).statistic)
        # Kendall: from the inverse of the matrix of coefficients.
        sides = (x, y, z)
        precision = np.linalg.inv([[stats.kendalltau(a, b).statistic for a in sides] for b in sides])
        expected = -precision[0, 1] / math.sqrt(precision[0, 0] * precision[1, 1])
        assert found.kendall == pytest.approx(expected)
        assert "partialled out" in found.held_fixed

    @staticmethod
    def points(trials, table, model):
        """(plasticity, accuracy, size) of each selection, from the grammar by hand."""
        values = {(r.block, r.component): r.mean for r in table.rows if r.mode == "reference" and r.block is not None}
        x, y, z = [], [], []
        for trial in trials:
            members = []
            for term in trial.spec.selection.split("+"):
                name, _, blocks = term.partition("@")
                first, last = map(int, blocks.split("-")) if blocks else (0, model.num_blocks - 1)
                members += [(block, name) for block in range(first, last + 1)]
            x.append(np.mean([values[member] for member in members]))
            y.append(trial.best_val_accuracy)
            z.append(sum(model.parameters[f"{block}.{name}"] for block, name in members))
        return x, y, z


class TestWhatCounts:
    def test_components_at_their_own_best_rate(self, build_trial, evidence, model):
        trials = [
            build_trial(0, "mha", 0.80, learning_rate=0.1),
            build_trial(1, "mha", 0.90, learning_rate=0.01, seed=0),
            build_trial(2, "mha", 0.70, learning_rate=0.01, seed=1),
            build_trial(3, "mha@0-3", 0.84, learning_rate=0.1, seed=1),  # the same selection in other words
            build_trial(4, "mha", 0.99, learning_rate=0.5, state=TrialState.STOPPED),
        ]
        (score,) = score_selections(trials, model)
        assert (score.learning_rate, score.num_seeds, score.num_rates) == (0.1, 2, 2)  # 0.5 did not finish
        assert score.val_accuracy == pytest.approx(0.82)

    def test_baselines_and_embed_are_left_out(self, build_trial, evidence, model):
        texts = ["all", "none", "embed", "embed+mha", "mha", "fc1", "fc2"]
        trials = [build_trial(i, text, 0.5 + i / 20) for i, text in enumerate(texts)]
        found = by_name(correlate(evidence.plasticity, trials, model))
        assert found["selections"].n == 3
        assert found["components"].n == 3
        assert found["components"].held_fixed == (
            "finished trials only, each selection at the one learning rate it was tried at"
        )
        trials.append(build_trial(9, "fc1", 0.5, learning_rate=0.7))
        held_fixed = by_name(correlate(evidence.plasticity, trials, model))["components"].held_fixed
        assert held_fixed == "finished trials only, each selection at its own best of 1 to 2 learning rates"

    def test_lora_is_no_evidence_on_the_component(self, build_trial, evidence, model):
        model = replace(model, lora_sizes={f"{block}.mha": 30 for block in range(model.num_blocks)})
        texts = ["mha", "fc1", "fc2", "mha:lora(2)", "mha@0:lora(2)+fc1"]
        trials = [build_trial(i, text, 0.5 + i / 20) for i, text in enumerate(texts)]
        found = by_name(correlate(evidence.plasticity, trials, model))
        assert found["selections"].n == found["components"].n == 3
        sizes = {str(score.selection): score.parameters for score in score_selections(trials, model)}
        assert sizes["mha:lora(2)"] == model.num_blocks * 2 * 30
        assert sizes["mha@0:lora(2)+fc1"] == 2 * 30 + sizes["fc1"]

    def test_constant_accuracy(self, build_trial, evidence, model):
        trials = [build_trial(i, name, 1.0) for i, name in enumerate(COMPONENTS)]
        found = by_name(correlate(evidence.plasticity, trials, model))["components"]
        assert (found.n, found.spearman, found.kendall, found.spearman_p) == (5, None, None, None)

    def test_two_points(self, build_trial, evidence, model):
        trials = [build_trial(0, "mha", 0.8), build_trial(1, "fc1", 0.9)]
        assert all(c.spearman is None for c in correlate(evidence.plasticity, trials, model))

    def test_size_that_orders_everything(self, build_trial, evidence, model):
        trials = [build_trial(i, f"mha@0-{i}", 0.5 + i / 10) for i in range(3)]
        found = by_name(correlate(evidence.plasticity, trials, model))
        assert found["selections"].spearman == pytest.approx(1)
        assert found["selections_size_partialled"].spearman is None

    def test_within_a_component(self, build_trial, evidence, model):
        accuracies = {"mha@0": 0.6, "mha@1": 0.7, "mha@2": 0.65, "mha@3": 0.8, "mha": 0.9, "fc1@0": 0.5, "fc1@1": 0.6}
        trials = [build_trial(i, text, value) for i, (text, value) in enumerate(accuracies.items())]
        found = by_name(correlate(evidence.plasticity, trials, model))
        assert {name for name in found if name.startswith("within")} == {"within_mha"}
        assert found["within_mha"].n == 4
        assert found["within_mha"].spearman == pytest.approx(0.8)  # reference plasticity rises with the block

    def test_modes_of_the_table_only(self, build_trial, model):
        row = PlasticityRow(mode="in_situ", block=None, component="mha", mean=1.0, sd=0, num_pairs=2, low=1, high=1)
        table = PlasticityTable(rows=(row,), skipped_pairs=0, seconds=0, model_digest="", data_digest="")
        assert {c.mode for c in correlate(table, [], model)} == {"in_situ"}


class TestP:
    def test_over_components_it_is_scipys_permutation_test(self, build_trial, evidence, model):
        accuracies = dict(zip(COMPONENTS, (0.8, 0.9, 0.7, 0.75, 0.6), strict=True))
        trials = [build_trial(i, name, value) for i, (name, value) in enumerate(accuracies.items())]
        found = by_name(correlate(evidence.plasticity, trials, model))["components"]
        means = evidence.plasticity.component_means("reference")
        x, y = [means[name] for name in COMPONENTS], list(accuracies.values())
        for method, p in ((stats.spearmanr, found.spearman_p), (stats.kendalltau, found.kendall_p)):
            exact = stats.permutation_test(
                (x,),
                lambda x, method=method: abs(method(x, y).statistic),
                permutation_type="pairings",
                alternative="greater",
                n_resamples=np.inf,
            )
            assert p == pytest.approx(exact.pvalue)

    def test_a_perfect_order_of_five_is_two_of_120(self, build_trial, evidence, model):
        trials = [build_trial(i, name, 0.9 - i / 10) for i, name in enumerate(COMPONENTS)]
        found = by_name(correlate(evidence.plasticity, trials, model))["components"]
        assert (found.spearman, found.spearman_p) == (1, 2 / 120)
        assert describe(found) == "Spearman 1.00, p = 0.017"

    def test_within_a_component_the_blocks_are_exchanged(self, build_trial, evidence, model):
        accuracies = {"mha@0": 0.6, "mha@1": 0.7, "mha@2": 0.8, "mha@3": 0.9}
        trials = [build_trial(i, text, value) for i, (text, value) in enumerate(accuracies.items())]
        found = by_name(correlate(evidence.plasticity, trials, model))["within_mha"]
        assert (found.exchanged, found.spearman_p) == ("blocks", 2 / 24)

    def test_of_two_scores_it_exchanges_whole_components(self, full_table):
        groups = full_table.by_group
        (tau, p), n = agreement(groups["reference"], groups["fisher"], num_blocks=4)
        assert (tau, p, n) == (1, 1 / 120, 20)  # 20 points, yet no more exchanges than five components have
        (tau, p), n = agreement(*(full_table.component_means(s) for s in ("reference", "fisher")), num_blocks=0)
        assert (tau, p, n) == (1, 2 / 120, 5)
        assert agreement({"mha": 1.0}, {"mha": 2.0}, num_blocks=0) == (None, 1)
