"""The pre-pass alone: plasticity of every component in `plasticity.modes`, rival scores in `plasticity.scores`.

python sweeps/plasticity.py model.name=… data=folder data.path=… data.source_path=… plasticity.scores=[fisher]
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent))  # neither `python -m sweeps.…` nor PYTHONSAFEPATH=1 does

from entry import launch

if TYPE_CHECKING:
    from unfreeze.config import Config


def main(config: "Config") -> None:
    from unfreeze.report.plasticity import terminal_plasticity
    from unfreeze.report.streams import show
    from unfreeze.sweep.prepass import measure_once

    show(terminal_plasticity(measure_once(config)))


if __name__ == "__main__":
    launch(main)
