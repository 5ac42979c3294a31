"""The pre-pass alone: plasticity of every component in `plasticity.modes`, rival scores in `plasticity.scores`.

python sweeps/plasticity.py model.name=… data=folder data.path=… data.source_path=… plasticity.scores=[fisher]
"""

from typing import TYPE_CHECKING

from entry import launch

if TYPE_CHECKING:
    from unfreeze.config import Config


def main(config: "Config") -> None:
    from unfreeze.report.plasticity import terminal_plasticity
    from unfreeze.sweep.prepass import measure_once

    print(terminal_plasticity(measure_once(config)))


if __name__ == "__main__":
    launch(main)
