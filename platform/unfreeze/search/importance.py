"""Which parameters told the best third of the trials from the rest: PED-ANOVA (2304.10255), Optuna's own evaluator."""

import math
from collections.abc import Sequence

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution

from unfreeze.components.selection import parse_selection
from unfreeze.config import Config
from unfreeze.cost.model import cost_model
from unfreeze.records import ModelFacts, TrialRecord, TrialState
from unfreeze.search.space import LEARNING_RATE, make_space

_MIN_TRIALS = 10
# What is told from the rest. Of the best tenth, Optuna's default, chance made the learning rate come first among 24 to
# 32 trials that a single switch decided; of the best third the switch did.
_BEST_SHARE = 1 / 3


def importances(config: Config, model: ModelFacts, trials: Sequence[TrialRecord]) -> dict[str, float]:
    """Parameter of the space → its share, the largest first; of accuracy, by the finished trials of the space.

    Empty for a grid, with fewer than ten such trials, and where all did the same.
    """
    if config.search.space == "grid":
        return {}
    space = make_space(config.search, cost_model(config, model))
    points: list[tuple[dict[str, object], float]] = []
    for trial in trials:
        selection = parse_selection(trial.spec.selection, num_blocks=model.num_blocks)
        accuracy = math.nan if trial.best_val_accuracy is None else trial.best_val_accuracy
        if trial.state is TrialState.FINISHED and math.isfinite(accuracy) and space.allows(selection):
            points.append((space.params(selection, trial.spec.learning_rate), accuracy))
    if len(points) < _MIN_TRIALS or len({accuracy for _, accuracy in points}) == 1:
        return {}
    rates = [trial.spec.learning_rate for trial in trials]  # the range may have grown
    distributions: dict[str, BaseDistribution] = {
        **space.distributions,
        LEARNING_RATE: FloatDistribution(
            min(*rates, space.learning_rate_low), max(*rates, space.learning_rate_high), log=True
        ),
    }
    # Here, since it brings scikit-learn's forests, and a sweep needs them at its end alone.
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize")
    for params, accuracy in points:
        study.add_trial(optuna.trial.create_trial(value=accuracy, params=params, distributions=distributions))
    return get_param_importances(study, evaluator=PedAnovaImportanceEvaluator(target_quantile=_BEST_SHARE))
