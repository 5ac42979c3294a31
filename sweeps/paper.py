"""The paper's experiments: 84 runs on each of its eleven sets, each set a sweep of its own, one after another.

python sweeps/paper.py paper.root=/data storage=s3://bucket/runs cluster=gpu
python sweeps/paper.py paper.root=/data paper.sets=[pet,flowers102] dry_run=true

Every option holds for all sets. Run again it goes on where it stopped; conf/experiment/paper.yaml says where data lies.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent))  # neither `python -m sweeps.…` nor PYTHONSAFEPATH=1 does

from entry import launch, recompose

if TYPE_CHECKING:
    from unfreeze.config import Config


def main(config: "Config") -> None:
    from unfreeze.errors import UnfreezeError
    from unfreeze.report.streams import show

    configs: dict[str, Config] = {
        name: recompose(f"paper_{name}", f"++sweep.name={config.sweep.name}-{name}") for name in config.paper.sets
    }
    if config.dry_run:
        from unfreeze.sweep.plan import plan_sweep, terminal_plan

        show(terminal_plan([plan_sweep(own) for own in configs.values()]))
        return
    from unfreeze.evidence.sets import pool_sweeps
    from unfreeze.report.paper import paper_table
    from unfreeze.report.sets import sets_report
    from unfreeze.search.left_out import leave_each_out
    from unfreeze.sweep.campaign import run_campaign
    from unfreeze.sweep.publish import publish_sets

    evidence, errors = run_campaign(configs)
    show(paper_table(evidence), kept_at=config.storage)
    if evidence:
        pooled = leave_each_out(evidence, pool_sweeps(evidence, one_protocol=True))
        show(sets_report(evidence, pooled), kept_at=config.storage)
        publish_sets(evidence, pooled, config.storage)
    if errors:
        listing = "\n".join(f"  {name}: {error}" for name, error in errors.items())
        raise UnfreezeError(
            f"{len(errors)} of {len(configs)} sets failed; mend the cause and run the same command, it goes on where "
            f"it stopped:\n{listing}"
        )


if __name__ == "__main__":
    launch(main, experiment="paper")
