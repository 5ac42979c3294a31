"""The end of a sweep: figures and report to the ledger, and both to MLflow; or MLflow alone, later."""

from collections.abc import Mapping

from unfreeze.config import TrackingConfig
from unfreeze.errors import ConfigError, InfrastructureError, StorageError, UnfreezeError
from unfreeze.records import Evidence, PooledSweeps
from unfreeze.report.card import CARD, model_card
from unfreeze.report.figures import render_all
from unfreeze.report.page import html_report
from unfreeze.report.sets import sets_page
from unfreeze.report.settings import redact
from unfreeze.report.streams import say
from unfreeze.storage.base import open_storage
from unfreeze.storage.ledger import Ledger
from unfreeze.sweep.gather import read_evidence
from unfreeze.tracking.mirror import MlflowMirror
from unfreeze.tracking.server import ExperimentDeletedError, explain


def publish(evidence: Evidence, ledger: Ledger, mirror: MlflowMirror) -> None:
    """Write ``report.html`` and the model's card and hand the figures to the mirror; repeating it changes nothing."""
    ledger.write_bytes("report.html", html_report(evidence).encode())
    if evidence.final is not None:
        exported = ledger.read_json(f"{evidence.final.export_folder}/config.json") or {}  # none in older ledgers
        card = model_card(evidence, exported)
        ledger.write_bytes(f"{evidence.final.export_folder}/{CARD}", card.encode())
    mirror.log_figures({f"{name}.svg": svg.encode() for name, svg in render_all(evidence).items()})


def publish_sets(evidence: Mapping[str, Evidence], pooled: PooledSweeps, location: str) -> None:
    """Write ``sweeps.html``, the page of several sweeps, into their storage and say where it is."""
    storage = open_storage(location)
    try:
        storage.write("sweeps.html", sets_page(evidence, pooled).encode())
    except StorageError as error:  # somebody else's storage, which one may only read
        say(f"sweeps.html is not written: {error}")
    else:
        say(f"report: {storage.url('sweeps.html')}")


def synchronise(tracking: TrackingConfig, ledger: Ledger) -> str:
    """Bring the MLflow at ``tracking.uri`` up to the ledger, another one than before too; says what is there now.

    Raises:
        ConfigError: there is no MLflow to bring up, or its experiment is deleted.
        InfrastructureError: it does not answer, or not everything could be written.
    """
    if tracking.uri is None:
        raise ConfigError("sync=true writes to MLflow, but tracking.uri is null; give a server or a database")
    evidence = read_evidence(ledger)
    mirror = MlflowMirror(tracking, ledger, read_evidence)
    mirror.log_figures({f"{name}.svg": svg.encode() for name, svg in render_all(evidence).items()})
    try:
        mirror.sync()
    except ExperimentDeletedError as error:
        raise ConfigError(str(error)) from error
    except UnfreezeError:
        raise
    except Exception as error:  # MLflow raises as many kinds as there are servers
        raise InfrastructureError(explain(error, tracking.uri)) from error
    if not mirror.is_complete:
        raise InfrastructureError(f"MLflow at {redact(tracking.uri)} has not everything yet, as said above")
    ended = sum(trial.state.is_final for trial in evidence.trials)
    return f"MLflow at {redact(tracking.uri)} has sweep {ledger.sweep} with the {ended} trials that have ended"
