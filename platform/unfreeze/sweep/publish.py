"""The end of a sweep: figures and report to the ledger, and both to MLflow."""

from collections.abc import Mapping

from unfreeze.errors import StorageError
from unfreeze.records import Evidence, PooledSweeps
from unfreeze.report.card import CARD, model_card
from unfreeze.report.figures import render_all
from unfreeze.report.page import html_report
from unfreeze.report.sets import sets_page
from unfreeze.report.streams import say
from unfreeze.storage.base import open_storage
from unfreeze.storage.ledger import Ledger
from unfreeze.tracking.mirror import MlflowMirror


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
