"""A tiny model and images whose class can be learnt."""

from tiny_training import data, make_config, make_part, make_spec, make_warm, one_thread  # noqa: F401
