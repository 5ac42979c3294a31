"""How sure a choice is, by the model that searched."""

from collections.abc import Sequence

from unfreeze.config import Config
from unfreeze.cost.model import cost_model
from unfreeze.records import Contender, Learned, ModelFacts, PlasticityTable, TrialRecord
from unfreeze.search.fixed import searches_by_model
from unfreeze.search.prior import is_known, prior_scores
from unfreeze.search.proposals import ModelSampler
from unfreeze.search.space import make_space


def stand(
    config: Config,
    model: ModelFacts,
    plasticity: PlasticityTable,
    trials: Sequence[TrialRecord],
    learned: Learned | None = None,
) -> tuple[Contender, ...]:
    """Every configuration that finished, most promising first; empty where the model does not search, or where the
    score that it searched by is not there.

    ``learned``: what the search began with.
    """
    score = config.search.prior.score
    if not searches_by_model(config.search) or not is_known(score, plasticity):
        return ()
    scores = prior_scores(score, plasticity, num_blocks=model.num_blocks)
    space = make_space(config.search, cost_model(config, model))
    return ModelSampler(space, scores, seed=config.sweep.seed, learned=learned).contenders(trials)
