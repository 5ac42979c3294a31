"""A sweep's evidence, gathered from its ledger: reports and MLflow show this and nothing else."""

import contextlib
import difflib
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
    MlflowPlace,
    TrialRecord,
    data_facts_from_dict,
    final_result_from_dict,
    model_facts_from_dict,
    plasticity_table_from_dict,
)
from unfreeze.report.caution import cautions
from unfreeze.search.importance import importances
from unfreeze.search.learned import read_learned
from unfreeze.search.standing import stand
from unfreeze.storage.ledger import Ledger

_SHOWN = 20  # sweeps that are named where one is missing


def read_evidence(ledger: Ledger, records: Sequence[TrialRecord] | None = None) -> Evidence:
    """Everything known so far; works on a sweep that is still running. ``records``: its trials', None: read here.

    Raises:
        StorageError: there is no such sweep, its pre-pass has not finished, or another version wrote what cannot be
            read here.
    """
    config, facts, table = (ledger.read_json(key) for key in ("config.json", "facts.json", "plasticity.json"))
    if config is None or facts is None or table is None:
        raise StorageError(_what_lacks(ledger, begun=config is not None))
    final, opened = ledger.read_json("final.json"), ledger.tests()
    try:
        model, data = model_facts_from_dict(facts["model"]), data_facts_from_dict(facts["data"])
        plasticity = plasticity_table_from_dict(table)
        result = None if final is None else final_result_from_dict(final)
    except (KeyError, TypeError, ValueError) as error:
        raise StorageError(
            f"{ledger.url('')} was written by another version of unfreeze ({type(error).__name__}: {error}); report it "
            f"with that version, which its environment.json names, or run the sweep under a new name"
        ) from error
    trials = tuple(ledger.trials() if records is None else records)
    understood = _understood(config)
    contenders: tuple[Contender, ...] = ()
    small: tuple[str, ...] = ()
    shares: dict[str, float] = {}
    if understood is not None:
        shares = importances(understood, model, trials)
        small = tuple(cautions(understood, num_train=data.num_train, num_val=data.num_val))
        with contextlib.suppress(np.linalg.LinAlgError):  # a fit that breaks down: the report says what else there is
            contenders = stand(understood, model, plasticity, trials, read_learned(understood, ledger))
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
        final=result,
        choices=tuple(choose_rates(trials, tests=tests, contenders=contenders)),
        contenders=contenders,
        worths=weigh_scores(plasticity, trials, model),
        cautions=small,
        importances=shares,
        num_tested=len(opened),
        mlflow=_place(ledger.read_json("mlflow.json")),
    )


def _place(stored: dict[str, str] | None) -> MlflowPlace | None:
    """None in ledgers of older versions too, which had an id alone."""
    return MlflowPlace(**stored) if stored is not None and "page" in stored else None


def _what_lacks(ledger: Ledger, *, begun: bool) -> str:
    """Why there is nothing to report, and what there is instead."""
    if begun or ledger.highest_lease():
        return f"there is no finished pre-pass in {ledger.url('')} yet; wait for it, or run the sweep's command again"
    others = ledger.neighbours()
    near = difflib.get_close_matches(ledger.sweep, others, n=1)
    shown = ", ".join(others[:_SHOWN]) + (f" and {len(others) - _SHOWN} more" if len(others) > _SHOWN else "")
    there = f"the sweeps there are {shown}" if others else "nor is there any other: check storage"
    return f"there is no sweep in {ledger.url('')}; " + (f"did you mean {near[0]}? " if near else "") + there


def _understood(config: dict[str, Any]) -> Config | None:
    """None of another version's sweep, which had neither the model that searches nor all options."""
    try:
        return load_config(config, typed=())
    except ConfigError:
        return None
