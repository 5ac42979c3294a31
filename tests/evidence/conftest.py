"""A sweep that never ran."""

from fake_trials import make_record  # noqa: F401
from finished_sweep import build_evidence, build_trial, evidence, full_evidence, full_table, ledger, model  # noqa: F401
