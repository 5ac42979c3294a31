"""The main path: pre-pass → prior → search on warm slots → evidence → sealed test and exported model.

Running it again is how it resumes: every step looks in the ledger first.
"""

import functools
import logging
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

from ray import tune

from unfreeze.config import Config, redact
from unfreeze.cost.model import cost_model
from unfreeze.errors import InfrastructureError
from unfreeze.finetune.schedule import num_steps_of, report_steps
from unfreeze.records import DataFacts, Evidence, ModelFacts, PlasticityTable, TrialState, final_result_from_dict
from unfreeze.report.streams import say, stage
from unfreeze.search.grid import GridPlanner
from unfreeze.search.learned import learn
from unfreeze.search.mirror import StudyMirror
from unfreeze.search.planner import Planner
from unfreeze.search.prior import component_means, prior_scores
from unfreeze.search.searcher import PlannedSearch
from unfreeze.search.space import make_space
from unfreeze.slots.board import Board
from unfreeze.slots.outcome import reopened
from unfreeze.slots.pool import SlotPool, beside_driver
from unfreeze.slots.trial import SlotTrial
from unfreeze.storage.base import check_writable
from unfreeze.storage.lease import hold
from unfreeze.storage.ledger import Ledger
from unfreeze.sweep.environment import describe_environment
from unfreeze.sweep.gather import read_evidence
from unfreeze.sweep.metrics import SweepMetrics
from unfreeze.sweep.prepass import pre_pass
from unfreeze.sweep.progress import Progress
from unfreeze.sweep.publish import publish
from unfreeze.sweep.resources import (
    GOES_ON,
    count_slots,
    no_trial_is_to_blame,
    ray_cluster,
    room_for_slots,
    settle_gpus,
    slots_beside_pre_pass,
)
from unfreeze.sweep.seal import open_test
from unfreeze.sweep.watch import ClusterWatch, watch_cluster
from unfreeze.tracking.mirror import MlflowMirror

logger = logging.getLogger(__name__)


def run_sweep(config: Config) -> Evidence:
    """Run a sweep to its end, or go on with one that was cut; returns its evidence.

    Raises:
        UnfreezeError: what the user must mend, before anything starts wherever that can be known.
        InfrastructureError: cluster or store broke down under it; nothing finished is lost, no trial is blamed.
        SweepInterrupted: stopped by a signal; nothing finished is lost.
    """
    ledger = Ledger(config.storage, config.sweep.name)
    check_writable(ledger.storage)
    say(f"sweep {ledger.sweep}: ledger {ledger.url('')}, MLflow {redact(config.tracking.uri or 'off')}")
    with hold(ledger, takeover=config.sweep.takeover) as ledger:
        if not ledger.is_claimed(config) or not is_final(config, ledger):
            with ray_cluster(config.cluster), watch_cluster() as watch:
                find_answer(settle_gpus(config), ledger, watch)
        with stage("weighing the evidence, writing the report"):
            evidence = read_evidence(ledger)
            with MlflowMirror(config.tracking, ledger, read_evidence) as mirror:
                publish(evidence, ledger, mirror)
        return evidence


def find_answer(config: Config, ledger: Ledger, watch: ClusterWatch) -> None:
    """Measure, plan, run every trial that has no outcome yet, then break the seal of the test images.

    Raises:
        UnfreezeError, InfrastructureError: as `run_sweep`.
    """
    board = beside_driver(Board, config.cluster.heartbeat_timeout_s, max_task_retries=-1)  # calls wait for the new one
    with start_slots(config, ledger, board) as pool:  # to be warm when plasticity is measured
        with no_trial_is_to_blame(has_begun=False):
            model, data, plasticity = pre_pass(config, ledger, on_placed=pool.warm_up)
        if config.sweep.retry_failed:
            reopen_failed(ledger)
        search = plan_search(config, ledger, model, data, plasticity)
        ledger.claim(config)  # not before all is checked: a mistake must not take the name
        with (
            no_trial_is_to_blame(),
            MlflowMirror(config.tracking, ledger, read_evidence) as mirror,
            StudyMirror(config, ledger, model) as study,
        ):
            ledger.write_json("environment.json", describe_environment())
            if not search.is_complete:
                told = [mirror.notify, study.notify]
                run_trials(config, ledger, search, board, pool, mirror, watch, on_trial_end=told, data=data)
            pool.close()
            with stage("running the recommended selection on the test images, exporting it"):
                open_test(config, ledger, data)


def start_slots(config: Config, ledger: Ledger, board: Any) -> SlotPool:
    """Those that the cluster has room for, around the board."""
    concurrency = config.search.concurrency
    num_slots = count_slots(config.cluster, concurrency=concurrency)
    if num_slots > concurrency:
        logger.warning(
            "%d slots but search.concurrency=%d: some will idle; raise it for the next sweep", num_slots, concurrency
        )
    say(f"starting {num_slots} slot{'' if num_slots == 1 else 's'} …")
    return SlotPool(
        config,
        ledger,
        board,
        num_slots=num_slots,
        num_early=min(num_slots, slots_beside_pre_pass(config)),
        room=functools.partial(room_for_slots, config.cluster, concurrency=concurrency),
    )


def is_final(config: Config, ledger: Ledger) -> bool:
    """Whether the sweep has its answer: from all trials, by the images now asked for (``search.select_on``)."""
    final = ledger.read_json("final.json")
    return (
        final is not None
        and final_result_from_dict(final).select_on == config.search.select_on
        and all(record.state.is_final for record in ledger.trials())
    )


def reopen_failed(ledger: Ledger) -> None:
    """Let the failed trials run again, as ``sweep.retry_failed`` asks."""
    for record in ledger.trials():
        if record.state is TrialState.FAILED:
            ledger.write_trial(reopened(record))


def plan_search(
    config: Config, ledger: Ledger, model: ModelFacts, data: DataFacts, plasticity: PlasticityTable
) -> PlannedSearch:
    """The searcher: what it will try depends on nothing but these arguments and the ledger's final records."""
    finetune = config.finetune
    num_steps = num_steps_of(finetune, data.num_train)
    scores = prior_scores(config.search.prior.score, plasticity, num_blocks=model.num_blocks)
    if config.search.space == "grid":
        grid = GridPlanner(config.search, model, scores=component_means(scores), train_head=finetune.train_head)
        return PlannedSearch(grid, ledger)
    space = make_space(config.search, cost_model(config, model))
    planner = Planner(
        config.search,
        space,
        scores=scores,
        milestones=[step * finetune.batch_size for step in report_steps(num_steps, finetune.num_reports)],
        seed=config.sweep.seed,
        learned=learn(config, ledger, model),
    )
    return PlannedSearch(
        planner,
        ledger,
        max_checkpoint_bytes=int(config.sweep.checkpoint_gib * 2**30),
        keep_top=config.search.confirm_top,
    )


def run_trials(
    config: Config,
    ledger: Ledger,
    search: PlannedSearch,
    board: Any,
    pool: SlotPool,
    mirror: MlflowMirror,
    watch: ClusterWatch,
    *,
    on_trial_end: Sequence[Callable[[], None]],
    data: DataFacts,
) -> None:
    """Run every trial that has no outcome yet: Tune's trials post jobs on the board, slots take them.

    Raises:
        InfrastructureError: no slot is left, the store or the cluster is gone, or Tune keeps losing a trial.
    """
    # Two sweeps on one cluster must not overwrite each other's trainable (ray#31330).
    trainable = f"unfreeze-{config.sweep.name}"
    # A trial waits for a slot and computes nothing; a request may not be empty, so it takes a crumb of the head node.
    crumb = {"CPU": 0, "node:__internal_head__": 0.001}
    tune.register_trainable(trainable, tune.with_resources(tune.with_parameters(SlotTrial, board=board), crumb))
    images = num_steps_of(config.finetune, data.num_train) * config.finetune.batch_size
    say(f"running {search.max_trials} trials at most …")
    pool.open()
    with (
        Progress(search, on_trial_end, board, images=images) as progress,
        tempfile.TemporaryDirectory(prefix="unfreeze-tune-", ignore_cleanup_errors=True) as folder,
    ):
        tuner = tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                search_alg=search,
                num_samples=-1,  # the planner says when it is enough
                reuse_actors=True,
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(
                name=config.sweep.name,
                storage_path=folder,
                verbose=0,
                # Silent at that. Left out, in a notebook Tune's own for these clears the cell, our bar with it.
                progress_reporter=tune.CLIReporter(),
                callbacks=[progress, watch, pool, SweepMetrics(search, ledger, board, mirror)],
            ),
        )
        tuner.fit()
    if not search.is_complete:
        raise InfrastructureError(f"{search.abandoned or 'Ray Tune ended before the last trial'}; {GOES_ON}")
