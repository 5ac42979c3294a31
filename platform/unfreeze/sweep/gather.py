"""A sweep's evidence, gathered from its ledger: reports and MLflow show this and nothing else."""

from typing import Any

import numpy as np

from unfreeze.errors import ConfigError, StorageError
from unfreeze.evidence.correlate import correlate
from unfreeze.evidence.recommend import choose_rates, recommend
from unfreeze.load import load_config
from unfreeze.records import (
    Contender,
    Evidence,
    ModelFacts,
    PlasticityTable,
    ScoreWorth,
    TrialRecord,
    data_facts_from_dict,
    final_result_from_dict,
    model_facts_from_dict,
    plasticity_table_from_dict,
)
from unfreeze.search.standing import stand, weigh_scores
from unfreeze.storage.ledger import Ledger


def read_evidence(ledger: Ledger) -> Evidence:
    """Everything known so far; works on a sweep that is still running.

    Raises:
        StorageError: there is no such sweep, or its pre-pass has not finished.
    """
    config, facts, table = (ledger.read_json(key) for key in ("config.json", "facts.json", "plasticity.json"))
    if config is None or facts is None or table is None:
        what = "no sweep" if config is None else "no finished pre-pass"
        raise StorageError(f"there is {what} in {ledger.url('')}; check storage and sweep.name, or run the sweep")
    model, plasticity = model_facts_from_dict(facts["model"]), plasticity_table_from_dict(table)
    trials = tuple(ledger.trials())
    final, opened = ledger.read_json("final.json"), ledger.tests()
    contenders, worths = _by_model(config, model, plasticity, trials)
    tests = opened if config["search"].get("select_on") == "test" else None  # no such choice in older ledgers
    return Evidence(
        sweep=ledger.sweep,
        config=config,
        model=model,
        data=data_facts_from_dict(facts["data"]),
        plasticity=plasticity,
        trials=trials,
        correlations=correlate(plasticity, trials, model),
        recommendation=recommend(trials, tests=tests, contenders=contenders),
        final=None if final is None else final_result_from_dict(final),
        choices=tuple(choose_rates(trials, tests=tests, contenders=contenders)),
        contenders=contenders,
        worths=worths,
        num_tested=len(opened),
    )


def _by_model(
    config: dict[str, Any], model: ModelFacts, plasticity: PlasticityTable, trials: tuple[TrialRecord, ...]
) -> tuple[tuple[Contender, ...], tuple[ScoreWorth, ...]]:
    """What the model of the evidence says; nothing of another version's sweep, which had no such model."""
    try:
        known = load_config(config)
        return stand(known, model, plasticity, trials), weigh_scores(known, model, plasticity, trials)
    except (ConfigError, np.linalg.LinAlgError):  # a fit that breaks down: the report says what else there is
        return (), ()
