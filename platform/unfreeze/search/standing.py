"""How sure a choice is, and what the scores were worth, by the model that searched."""

from collections.abc import Sequence

from unfreeze.config import Config
from unfreeze.cost.model import cost_model
from unfreeze.records import Contender, ModelFacts, PlasticityTable, ScoreWorth, TrialRecord
from unfreeze.search.prior import prior_scores
from unfreeze.search.proposals import ModelSampler, searches_by_model
from unfreeze.search.space import make_space


def stand(
    config: Config, model: ModelFacts, plasticity: PlasticityTable, trials: Sequence[TrialRecord]
) -> tuple[Contender, ...]:
    """Every configuration that finished, most promising first; empty where the model does not search."""
    if not searches_by_model(config.search):
        return ()
    return _sampler(config, model, plasticity, config.search.prior.score).contenders(trials)


def weigh_scores(
    config: Config, model: ModelFacts, plasticity: PlasticityTable, trials: Sequence[TrialRecord]
) -> tuple[ScoreWorth, ...]:
    """What each measured score is worth, each in a model of its own; empty where the model does not search."""
    if not searches_by_model(config.search):
        return ()
    found = []
    for score in plasticity.by_group:
        mean, low, high = _sampler(config, model, plasticity, score).worth(trials)
        found.append(ScoreWorth(score=score, mean=mean, low=low, high=high))
    return tuple(found)


def _sampler(config: Config, model: ModelFacts, plasticity: PlasticityTable, score: str) -> ModelSampler:
    scores = prior_scores(score, plasticity, num_blocks=model.num_blocks)
    return ModelSampler(make_space(config.search, cost_model(config, model)), scores, seed=config.sweep.seed)
