"""Linear probes without Ray: probe.at, probe.method, probe.pool.

python sweeps/probe.py experiment=demo probe.at=[all]
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent))  # neither `python -m sweeps.…` nor PYTHONSAFEPATH=1 does

from entry import launch

if TYPE_CHECKING:
    from unfreeze.config import Config


def main(config: "Config") -> None:
    from unfreeze.sweep.preflight import check_inputs

    check_inputs(config, selections=[], writes=False)  # before torch, which takes seconds

    from unfreeze.report.probe import terminal_probe
    from unfreeze.report.streams import show
    from unfreeze.sweep.probe import probe_once

    show(terminal_probe(probe_once(config)))


if __name__ == "__main__":
    launch(main)
