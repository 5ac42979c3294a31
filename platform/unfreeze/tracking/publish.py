"""The end of a sweep: figures and report to the ledger, and both to MLflow."""

from unfreeze.records import Evidence
from unfreeze.storage.ledger import Ledger
from unfreeze.tracking.figures import render_all
from unfreeze.tracking.mirror import MlflowMirror
from unfreeze.tracking.report import html_report


def publish(evidence: Evidence, ledger: Ledger, mirror: MlflowMirror) -> None:
    """Write ``report.html`` and hand the evidence to the mirror; repeating it changes nothing."""
    figures = render_all(evidence)
    ledger.write_bytes("report.html", html_report(evidence, figures).encode())
    mirror.log_evidence(evidence, figures)
