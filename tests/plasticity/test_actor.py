"""Sharing the pairs, with actors of paper and a fate drawn by lot; tests/integration has Ray's own."""

import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray

from unfreeze.config import Config
from unfreeze.errors import ClusterError, ModelError
from unfreeze.load import load_config
from unfreeze.plasticity import actor as actor_module
from unfreeze.plasticity.actor import PrePass, measure_with
from unfreeze.plasticity.measurement import Measurement
from unfreeze.plasticity.sequential import BatchRates
from unfreeze.records import COMPONENTS, DataFacts, ModelFacts, PlasticityTable, to_dict
from unfreeze.sweep.resources import plain_errors

NUM_BLOCKS, BATCH, NUM_BATCHES = 2, 4, 9
MODEL = ModelFacts(name="m", digest="m" * 64, num_blocks=NUM_BLOCKS, parameters={}, image_size=32, create_kwargs={})
DATA = DataFacts(
    name="digits",
    digest="d" * 64,
    classes=("a", "b"),
    num_train=BATCH * NUM_BATCHES - 1,  # the last batch is short
    num_val=1,
    num_test=1,
    num_source=1000,
    pairs_digest="pairs",
)


def comparable(table: PlasticityTable) -> dict[str, Any]:
    """All but the seconds; dicts compare to the last digit."""
    return to_dict(replace(table, seconds=0.0))


# --- actors of paper --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Reference:
    """A call that has not been answered yet."""

    actor: "PaperActor"
    method: str
    arguments: tuple[Any, ...]


@dataclass(eq=False)
class PaperActor:
    """Answers in no time and no process; dies at its ``dies_at``-th batch, or at ``dies_in`` a method."""

    pairs_digest: str = DATA.pairs_digest
    weights_digest: str = MODEL.digest
    dies_at: int | None = None
    dies_in: str | None = None
    raises_at: int | None = None  # an error of ours at this batch index
    death: Exception = field(default_factory=ray.exceptions.RayActorError)
    is_dead: bool = False
    measured: list[int] = field(default_factory=list)
    asked: Counter[str] = field(default_factory=Counter)
    open_batches: int = 0
    most_open: int = 0

    def __getattr__(self, method: str) -> Any:
        if method not in ("facts", "rates", "finish"):
            raise AttributeError(method)
        return SimpleNamespace(remote=lambda *arguments: self._ask(method, arguments))

    def _ask(self, method: str, arguments: tuple[Any, ...]) -> Reference:
        self.asked[method] += 1
        self.open_batches += method == "rates"
        self.most_open = max(self.most_open, self.open_batches)
        return Reference(self, method, arguments)

    def answer(self, method: str, arguments: tuple[Any, ...]) -> Any:
        self.open_batches -= method == "rates"
        dies = method == self.dies_in or (method == "rates" and len(self.measured) + 1 == self.dies_at)
        if dies or self.is_dead:
            self.is_dead = True
            raise self.death
        if method == "facts":
            return replace(MODEL, digest=self.weights_digest), replace(DATA, pairs_digest=self.pairs_digest)
        if method == "finish":
            return [], {"seen": {"0.mha": float(arguments[0].num_tokens)}}
        if arguments[0] == self.raises_at:
            error = ray.exceptions.RayTaskError(method, "where it was", ModelError(f"batch {arguments[0]} is broken"))
            raise error.as_instanceof_cause()
        self.measured.append(arguments[0])
        return paper_batch(arguments[0])


def paper_batch(index: int) -> BatchRates:
    rng = np.random.default_rng(index)
    num_pairs = min(BATCH, DATA.num_train - index * BATCH)
    values = rng.normal(1, 0.1, (num_pairs, NUM_BLOCKS, len(COMPONENTS))) + np.arange(len(COMPONENTS))
    return BatchRates(
        observations={"reference": values},
        maxima={"reference": values.max(0)},
        num_pairs=num_pairs,
        skipped_pairs=index % 2,
        extremes={"reference": rng.random((3, NUM_BLOCKS))},
        token_norm=(float(rng.random()), 17 * num_pairs, 17),
    )


class PaperRay:
    """`ray.wait` and `ray.get` where the lot decides who is done first."""

    exceptions = ray.exceptions

    def __init__(self, choose: Callable[[Sequence[Reference]], Reference]) -> None:
        self._choose = choose

    def wait(self, references: Sequence[Reference], num_returns: int) -> tuple[list[Reference], list[Reference]]:
        assert references, "nothing to wait for"
        assert num_returns == 1
        chosen = self._choose(references)
        return [chosen], [reference for reference in references if reference is not chosen]

    def get(self, reference: Reference) -> Any:
        return reference.actor.answer(reference.method, reference.arguments)


@pytest.fixture
def measure_paper(monkeypatch: pytest.MonkeyPatch) -> Callable[..., PlasticityTable]:
    """(actors, how to choose who is done first, plasticity options) → table."""

    def measure(
        actors: Sequence[PaperActor],
        choose: Callable[[Sequence[Reference]], Reference] = lambda r: r[0],
        **options: Any,
    ) -> PlasticityTable:
        monkeypatch.setattr(actor_module, "ray", PaperRay(choose))
        return measure_with(actors, paper_config(**options), MODEL, DATA)

    return measure


def paper_config(**options: Any) -> Config:
    plasticity = {"modes": ["reference"], "batch_size": BATCH, "stop_early": False, **options}
    return load_config({"plasticity": plasticity})


def plain_table(num_batches: int = NUM_BATCHES, **options: Any) -> dict[str, Any]:
    """The batches one after the other, without anybody to share them with."""
    measurement = Measurement(NUM_BLOCKS, paper_config(**options).plasticity)
    for index in range(num_batches):
        measurement.add(paper_batch(index))
    scores = {"seen": {"0.mha": 17.0}}
    table = measurement.table(
        bounds=[], scores=scores, seconds=0.0, model_digest=MODEL.digest, data_digest=DATA.pairs_digest
    )
    return comparable(table)


@pytest.mark.parametrize("seed", range(60))
def test_neither_number_nor_speed_nor_loss_changes_a_digit(
    seed: int, measure_paper: Callable[..., PlasticityTable], caplog: pytest.LogCaptureFixture
) -> None:
    lot = random.Random(seed)
    actors = [PaperActor(dies_at=lot.choice([None, None, 1, 2, 3])) for _ in range(lot.randint(0, 4))]
    actors.insert(lot.randint(0, len(actors)), PaperActor())  # one lives
    if actors[-1].dies_at and len(actors) > 1:
        actors[-1].dies_in = lot.choice(["facts", "finish", None])
    table = measure_paper(actors, lot.choice)
    assert comparable(table) == plain_table()
    finished = [batch for actor in actors for batch in actor.measured]
    assert sorted(finished) == list(range(NUM_BATCHES))  # none twice
    assert max(actor.most_open for actor in actors) <= 2
    lost = sum("was lost" in record.message for record in caplog.records)
    assert lost <= sum(actor.is_dead for actor in actors)  # one that died unseen is not missed
    assert sum(actor.asked["finish"] for actor in actors) >= 1


@pytest.mark.parametrize("seed", range(20))
def test_where_it_stops_does_not_depend_on_who_measures(
    seed: int, measure_paper: Callable[..., PlasticityTable]
) -> None:
    lot = random.Random(seed)
    options = {"stop_early": True, "min_observations": 8, "relative_error": 0.05}
    actors = [PaperActor() for _ in range(lot.randint(1, 4))]
    table = measure_paper(actors, lot.choice, **options)
    assert comparable(table) == plain_table(2, **options)
    assert {row.num_pairs for row in table.rows} == {2 * BATCH}


def test_an_idle_actor_is_given_two_batches_at_once(measure_paper: Callable[..., PlasticityTable]) -> None:
    first, second = PaperActor(), PaperActor()
    measure_paper([first, second], lambda references: references[-1])  # the second joins before any batch is done
    assert (first.most_open, second.most_open) == (2, 2)
    assert first.measured
    assert second.measured


def test_the_loss_of_an_actor_is_said(
    measure_paper: Callable[..., PlasticityTable], caplog: pytest.LogCaptureFixture
) -> None:
    dying, living = PaperActor(dies_at=2), PaperActor()
    with caplog.at_level(logging.WARNING):
        measure_paper([dying, living])
    assert [record.message for record in caplog.records] == ["an actor of the pre-pass was lost; 1 are left"]
    assert dying.asked["facts"] == 0  # it had given them before
    assert living.asked["facts"] == 1


@pytest.mark.parametrize("dies_in", ["rates", "finish"])
@pytest.mark.parametrize("count", [1, 3])
def test_no_actor_left_is_a_cluster_error(
    count: int, dies_in: str, measure_paper: Callable[..., PlasticityTable]
) -> None:
    with pytest.raises(ClusterError, match=r"every actor of the pre-pass was lost.*plasticity\.batch_size"):
        measure_paper([PaperActor(dies_in=dies_in) for _ in range(count)])


@pytest.mark.parametrize("dies_in", ["rates", "finish", "facts"])
def test_one_that_ray_s_memory_monitor_killed_is_lost_like_any_other(
    dies_in: str, measure_paper: Callable[..., PlasticityTable]
) -> None:
    """Ray reports it by an error that is no RayActorError (2.60: OutOfMemoryError, seen with a real actor)."""
    dying = PaperActor(dies_in=dies_in, death=ray.exceptions.OutOfMemoryError("killed"))
    actors = [PaperActor(), dying] if dies_in == "facts" else [dying, PaperActor()]
    assert comparable(measure_paper(actors, lambda references: references[-1])) == plain_table()
    if dies_in != "facts":
        with pytest.raises(ClusterError, match="out of memory"):
            measure_paper([PaperActor(dies_in=dies_in, death=ray.exceptions.OutOfMemoryError("killed"))])


@pytest.mark.parametrize("dies_in", ["rates", "finish"])
def test_one_that_still_joins_takes_over_from_the_only_one_ready(
    dies_in: str, measure_paper: Callable[..., PlasticityTable]
) -> None:
    late = PaperActor()

    def late_last(references: Sequence[Reference]) -> Reference:
        return min(references, key=lambda reference: (reference.actor is late, references.index(reference)))

    assert comparable(measure_paper([PaperActor(dies_in=dies_in), late], late_last)) == plain_table()
    assert late.asked["finish"] == 1


def test_one_that_never_joins_is_not_waited_for(measure_paper: Callable[..., PlasticityTable]) -> None:
    pending = PaperActor()  # the cluster has no room for it

    def others(references: Sequence[Reference]) -> Reference:
        return next(reference for reference in references if reference.actor is not pending)

    assert comparable(measure_paper([PaperActor(), pending], others)) == plain_table()


def test_other_images_on_another_node_are_a_cluster_error(measure_paper: Callable[..., PlasticityTable]) -> None:
    actors = [PaperActor(), PaperActor(pairs_digest="other")]
    with pytest.raises(ClusterError, match=r"different images; give a place that all can reach"):
        measure_paper(actors, lambda references: references[-1])


def test_other_weights_on_another_node_are_a_cluster_error(measure_paper: Callable[..., PlasticityTable]) -> None:
    actors = [PaperActor(), PaperActor(weights_digest="other")]
    with pytest.raises(ClusterError, match="different weights"):
        measure_paper(actors, lambda references: references[-1])


def test_an_error_beyond_the_stop_is_as_if_nobody_had_run_ahead(measure_paper: Callable[..., PlasticityTable]) -> None:
    """Which batches are measured ahead depends on speed; whether there is a table must not."""
    options = {"stop_early": True, "min_observations": 8, "relative_error": 0.05}
    actors = [PaperActor(raises_at=2), PaperActor(raises_at=2)]
    alone = measure_paper([PaperActor(raises_at=2)], **options)
    assert comparable(alone) == plain_table(2, **options)
    shared = measure_paper(actors, lambda references: references[-1], **options)
    assert comparable(shared) == comparable(alone)


def test_an_error_before_the_stop_is_raised(measure_paper: Callable[..., PlasticityTable]) -> None:
    with pytest.raises(ModelError, match="batch 2 is broken"), plain_errors():
        measure_paper([PaperActor(raises_at=2)])


def test_scores_and_bounds_wait_for_the_batch_that_is_still_measured() -> None:
    """After an early stop a batch may be under way: its hooks and patched layers would spoil the scores' passes."""
    inside, release, seen = threading.Event(), threading.Event(), []

    class SlowEstimator:
        def load(self, index: int) -> int:
            return index

        def rates(self, loaded: int) -> int:
            inside.set()
            assert release.wait(10)
            seen.append("rates")
            return loaded

        def bounds(self, _: Any) -> list[Any]:
            seen.append("bounds")
            return []

    pre_pass = PrePass(paper_config())
    pre_pass._estimator = SlowEstimator()  # type: ignore[assignment]
    batch = threading.Thread(target=pre_pass.rates, args=(0,))
    batch.start()
    assert inside.wait(10)
    finish = threading.Thread(target=pre_pass.finish, args=(None,))
    finish.start()
    time.sleep(0.1)
    release.set()
    batch.join()
    finish.join()
    assert seen == ["rates", "bounds"]
