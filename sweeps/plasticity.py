"""The pre-pass alone: the plasticity of every component, both modes.

python sweeps/plasticity.py model.name=… data=folder data.path=… data.source_path=…
"""

from typing import TYPE_CHECKING

from entry import launch

if TYPE_CHECKING:
    from unfreeze.config import Config


def main(config: "Config") -> None:
    from unfreeze.storage.ledger import Ledger
    from unfreeze.sweep.resources import ray_cluster
    from unfreeze.sweep.run import pre_pass
    from unfreeze.tracking.report import terminal_plasticity

    ledger = Ledger(config.storage, config.sweep.name)
    with ray_cluster(config.cluster):
        _, _, table = pre_pass(config, ledger)
    ledger.claim(config)
    print(terminal_plasticity(table))


if __name__ == "__main__":
    launch(main)
