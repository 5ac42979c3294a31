"""The end of a search: the seal of the test images is broken, once, for what is recommended."""

import ray

from unfreeze.config import Config
from unfreeze.errors import UnfreezeError
from unfreeze.records import DataFacts, FinalResult, Recommendation
from unfreeze.report.streams import say
from unfreeze.storage.ledger import Ledger
from unfreeze.sweep.gather import read_evidence
from unfreeze.sweep.resources import plain_errors, worker_resources


def open_test(config: Config, ledger: Ledger, data: DataFacts) -> None:
    """Break the seal: evaluate and export the recommended selection, once.

    With ``search.select_on`` test the seal is broken for every trial before, and the test images recommend.
    """
    task = ray.remote(**worker_resources(config.cluster))
    if config.search.select_on == "test":
        say("every trial on the test images, to choose as the paper's code does")
        with plain_errors():
            ray.get(task(_open_test_for_all).remote(config, ledger, data))
    recommendation = read_evidence(ledger).recommendation
    if recommendation is None:
        raise UnfreezeError(
            f"no trial of sweep {config.sweep.name!r} finished, so there is nothing to recommend; the records in "
            f"{ledger.url('trials/')} say why"
        )
    with plain_errors():
        ray.get(task(_finalize).remote(config, ledger, recommendation, data))


def _finalize(config: Config, ledger: Ledger, recommendation: Recommendation, data: DataFacts) -> FinalResult:
    """`finalize`, imported where it runs: the driver needs no model."""
    from unfreeze.sweep.finalize import finalize

    return finalize(config, ledger, recommendation, data)


def _open_test_for_all(config: Config, ledger: Ledger, data: DataFacts) -> None:
    """`open_test_for_all`, imported where it runs."""
    from unfreeze.sweep.published import open_test_for_all

    open_test_for_all(config, ledger, data)
