"""Several sweeps one after another: one that fails is reported, and the others still run.

Each has a Ray session of its own where Ray is started here: a slot leaves a cleaner actor of 0.6 GB behind (ray#65443),
and a start costs seconds against the hours of a sweep.
"""

import traceback
from collections.abc import Mapping

from unfreeze.config import Config
from unfreeze.errors import InfrastructureError, UnfreezeError
from unfreeze.records import Evidence
from unfreeze.report.streams import say
from unfreeze.sweep.preflight import check_sweep
from unfreeze.sweep.run import run_sweep


def run_campaign(configs: Mapping[str, Config]) -> tuple[dict[str, Evidence], dict[str, str]]:
    """Run each sweep to its end or go on with it; the evidence of what ended well, and the error of what did not.

    Raises:
        SweepInterrupted: stopped by a signal, and then no further sweep is begun.
    """
    evidence: dict[str, Evidence] = {}
    errors: dict[str, str] = {}
    for number, (name, config) in enumerate(configs.items(), 1):
        say(f"{number}/{len(configs)}: {name}, sweep {config.sweep.name}")
        try:
            check_sweep(config)
            evidence[name] = run_sweep(config)
        except (UnfreezeError, InfrastructureError) as error:
            errors[name] = str(error)
        except Exception as error:  # whatever it was, days of other sweeps do not hang on it
            say(traceback.format_exc())
            errors[name] = f"{type(error).__name__}: {error}"
        if name in errors:
            say(f"{name} failed: {errors[name]}")
    return evidence, errors
