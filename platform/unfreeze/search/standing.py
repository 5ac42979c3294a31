"""How sure a choice is, by the model that searched."""

from collections.abc import Sequence

from unfreeze.config import Config
from unfreeze.cost.model import cost_model
from unfreeze.records import Contender, ModelFacts, PlasticityTable, TrialRecord
from unfreeze.search.prior import prior_scores
from unfreeze.search.proposals import ModelSampler
from unfreeze.search.space import make_space


def stand(
    config: Config, model: ModelFacts, plasticity: PlasticityTable, trials: Sequence[TrialRecord]
) -> tuple[Contender, ...]:
    """Every configuration that finished, most promising first; empty where another sampler or a grid chose them."""
    search = config.search
    if search.space == "grid" or search.sampler != "model" or search.objective != "accuracy":
        return ()
    scores = prior_scores(search.prior.score, plasticity, num_blocks=model.num_blocks)
    sampler = ModelSampler(make_space(search, cost_model(config, model)), scores, seed=config.sweep.seed)
    return sampler.contenders(trials)
