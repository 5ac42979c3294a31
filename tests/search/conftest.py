"""Trials that never ran."""

from fake_trials import fake_trial, make_planner, make_record, model  # noqa: F401
