"""The sweep: which components of this model should be unfrozen for this data, at which learning rate?

python sweeps/vit_components.py experiment=demo
python sweeps/vit_components.py experiment=demo dry_run=true
ray job submit --working-dir . -- python sweeps/vit_components.py experiment=demo
"""

from typing import TYPE_CHECKING

from entry import launch

if TYPE_CHECKING:
    from unfreeze.config import Config


def main(config: "Config") -> None:
    if config.dry_run:
        from unfreeze.sweep.plan import plan_sweep, terminal_plan

        print(terminal_plan([plan_sweep(config)]))
        return
    from unfreeze.report.page import terminal_report
    from unfreeze.sweep.run import run_sweep

    evidence = run_sweep(config)
    print(terminal_report(evidence))


if __name__ == "__main__":
    launch(main)
