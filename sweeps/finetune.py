"""One finetuning run without Ray: trial.selection, trial.learning_rate, trial.seed.

python sweeps/finetune.py experiment=demo trial.selection=mha@3-5+fc1 trial.learning_rate=0.02
python sweeps/finetune.py experiment=demo 'trial.selection=mha:lora(8)' dry_run=true
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

    check_inputs(config, selections=[config.trial.selection], writes=False)  # before torch, which takes seconds

    from unfreeze.report.cost import prediction_line, terminal_cost
    from unfreeze.report.streams import show
    from unfreeze.sweep.single import open_trial

    trial = open_trial(config)
    cost = trial.cost()
    if config.dry_run:
        show(terminal_cost(cost))
        return
    for report in trial.run():
        show(
            f"{report.images_seen:>8} images  train loss {report.train_loss:.4f}  val loss {report.val_loss:.4f}  "
            f"val accuracy {report.val_accuracy:.2%}  {report.seconds:.1f} s"
        )
    show(prediction_line(cost, report.seconds))


if __name__ == "__main__":
    launch(main)
