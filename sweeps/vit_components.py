"""The sweep: which components of this model should be unfrozen for this data, at which learning rate?

python sweeps/vit_components.py experiment=demo
python sweeps/vit_components.py experiment=demo dry_run=true
ray job submit --working-dir . -- python sweeps/vit_components.py experiment=demo
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent))  # neither `python -m sweeps.…` nor PYTHONSAFEPATH=1 does

from entry import launch

if TYPE_CHECKING:
    from unfreeze.config import Config


def main(config: "Config") -> None:
    from unfreeze.report.streams import say, show

    if config.dry_run:
        from unfreeze.sweep.plan import plan_sweep, terminal_plan

        show(terminal_plan([plan_sweep(config)]))
        return
    from unfreeze.sweep.preflight import check_sweep

    check_sweep(config)
    say(f"sweep {config.sweep.name}: loading Ray …")  # which takes seconds
    from unfreeze.report.page import terminal_report
    from unfreeze.storage.ledger import Ledger
    from unfreeze.sweep.run import run_sweep

    evidence = run_sweep(config)
    show(terminal_report(evidence), kept_at=Ledger(config.storage, config.sweep.name).url("report.html"))


if __name__ == "__main__":
    launch(main)
