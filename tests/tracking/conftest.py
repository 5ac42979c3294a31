"""A sweep that never ran."""

from finished_sweep import build_evidence, build_trial, evidence, full_evidence, full_table, ledger, model  # noqa: F401
from mlflow_runs import config, fresh_database  # noqa: F401
