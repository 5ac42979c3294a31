"""A sweep's evidence, gathered from its ledger: reports and MLflow show this and nothing else."""

import contextlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from unfreeze.config import Config
from unfreeze.errors import ConfigError, StorageError
from unfreeze.evidence.correlate import correlate
from unfreeze.evidence.recommend import choose_rates, recommend
from unfreeze.evidence.worth import weigh_scores
from unfreeze.load import load_config
from unfreeze.records import (
    Contender,
    Evidence,
    TrialRecord,
    data_facts_from_dict,
    final_result_from_dict,
    model_facts_from_dict,
    plasticity_table_from_dict,
)
from unfreeze.report.caution import cautions
from unfreeze.search.standing import stand
from unfreeze.storage.ledger import Ledger


def read_evidence(ledger: Ledger, records: Sequence[TrialRecord] | None = None) -> Evidence:
    """Everything known so far; works on a sweep that is still running. ``records``: its trials', None: read here.

    Raises:
        StorageError: there is no such sweep, or its pre-pass has not finished.
    """
    config, facts, table = (ledger.read_json(key) for key in ("config.json", "facts.json", "plasticity.json"))
    if config is None or facts is None or table is None:
        what = "no sweep" if config is None else "no finished pre-pass"
        raise StorageError(f"there is {what} in {ledger.url('')}; check storage and sweep.name, or run the sweep")
    model, plasticity = model_facts_from_dict(facts["model"]), plasticity_table_from_dict(table)
    trials = tuple(ledger.trials() if records is None else records)
    final, opened = ledger.read_json("final.json"), ledger.tests()
    data, understood = data_facts_from_dict(facts["data"]), _understood(config)
    contenders: tuple[Contender, ...] = ()
    small: tuple[str, ...] = ()
    if understood is not None:
        small = tuple(cautions(understood, num_train=data.num_train, num_val=data.num_val))
        with contextlib.suppress(np.linalg.LinAlgError):  # a fit that breaks down: the report says what else there is
            contenders = stand(understood, model, plasticity, trials)
    tests = opened if config["search"].get("select_on") == "test" else None  # no such choice in older ledgers
    return Evidence(
        sweep=ledger.sweep,
        config=config,
        model=model,
        data=data,
        plasticity=plasticity,
        trials=trials,
        correlations=correlate(plasticity, trials, model),
        recommendation=recommend(trials, tests=tests, contenders=contenders),
        final=None if final is None else final_result_from_dict(final),
        choices=tuple(choose_rates(trials, tests=tests, contenders=contenders)),
        contenders=contenders,
        worths=weigh_scores(plasticity, trials, model),
        cautions=small,
        num_tested=len(opened),
    )


def _understood(config: dict[str, Any]) -> Config | None:
    """None of another version's sweep, which had neither the model that searches nor all options."""
    try:
        return load_config(config)
    except ConfigError:
        return None
