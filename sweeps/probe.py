"""Linear probes without Ray: probe.at, probe.method, probe.pool.

python sweeps/probe.py experiment=demo probe.at=[all]
"""

from typing import TYPE_CHECKING

from entry import launch

if TYPE_CHECKING:
    from unfreeze.config import Config


def main(config: "Config") -> None:
    from unfreeze.report.probe import terminal_probe
    from unfreeze.sweep.probe import probe_once

    print(terminal_probe(probe_once(config)))


if __name__ == "__main__":
    launch(main)
