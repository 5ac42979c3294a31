"""The end of a sweep: figures and report to the ledger, and both to MLflow."""

from unfreeze.records import Evidence
from unfreeze.report.figures import render_all
from unfreeze.report.page import html_report
from unfreeze.storage.ledger import Ledger
from unfreeze.tracking.mirror import MlflowMirror


def publish(evidence: Evidence, ledger: Ledger, mirror: MlflowMirror) -> None:
    """Write ``report.html`` and hand the figures to the mirror; repeating it changes nothing."""
    ledger.write_bytes("report.html", html_report(evidence).encode())
    mirror.log_figures({f"{name}.svg": svg.encode() for name, svg in render_all(evidence).items()})
