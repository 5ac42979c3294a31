"""Sharing the pairs: first with actors of paper and a fate drawn by lot, then with Ray's own."""

import logging
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray
import torch

from unfreeze.config import Config
from unfreeze.data.sets.catalog import load_source, load_train_val
from unfreeze.errors import ClusterError, ModelError
from unfreeze.load import load_config
from unfreeze.models.build import build_model, input_size
from unfreeze.plasticity import actor as actor_module
from unfreeze.plasticity.actor import PrePass, measure_with
from unfreeze.plasticity.local import measure_plasticity
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


# --- Ray's own --------------------------------------------------------------------------------------------------------


def real_config(cache_dir: Path, **options: Any) -> Config:
    plasticity = {"num_pairs": 45, "batch_size": 8, "modes": ["reference", "in_situ"], "stop_early": False, **options}
    return load_config({"data": {"cache_dir": str(cache_dir), "max_train_images": 60}, "plasticity": plasticity})


STOPS = {"num_pairs": 60, "stop_early": True, "min_observations": 8, "relative_error": 0.02}
SCORED = {"scores": ["parameters", "gradient_norm"]}


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def hire(cluster: None, cache_dir: Path) -> Iterator[Callable[[], Any]]:
    """Starts a real actor that can be told to die, and writes down what it measured."""

    # Local, so that cloudpickle carries it: the workers cannot import a test.
    class Scripted(PrePass):
        def begin(self, config: Config, log: str, dies_at: int | None = None, delay_s: float = 0.0) -> Any:
            self._config, self._log, self._dies_at, self._delay_s = config, log, dies_at, delay_s
            self._count = 0
            return self.facts()

        def rates(self, index: int) -> Any:
            self._count += 1
            if self._count == self._dies_at:
                os._exit(1)
            time.sleep(self._delay_s)
            rates = super().rates(index)
            with Path(self._log).open("a") as file:
                file.write(f"{index}\n")
            return rates

        def broken(self) -> None:
            raise ModelError("the weights of block 1 mha hold NaN")

    hired = []

    def start() -> Any:
        actor = ray.remote(num_cpus=0, max_concurrency=2)(Scripted).remote(real_config(cache_dir))
        hired.append(actor)
        return actor

    yield start
    for actor in hired:
        ray.kill(actor)


@pytest.fixture(scope="module")
def crew(hire: Callable[[], Any]) -> tuple[Any, Any, Any]:
    """Three actors, started together; the third is there to be lost."""
    return hire(), hire(), hire()


@pytest.fixture
def share(crew: tuple[Any, Any, Any], cache_dir: Path, tmp_path: Path) -> Callable[..., tuple[PlasticityTable, list]]:
    """(actors, how each behaves, plasticity options) → the table, and the batches that were finished."""

    def run(
        actors: Sequence[Any], behaviour: Sequence[dict[str, Any]] = ({}, {}, {}), **options: Any
    ) -> tuple[PlasticityTable, list[int]]:
        log, config = tmp_path / "batches.txt", real_config(cache_dir, **options)
        log.write_text("")
        begun = [a.begin.remote(config, str(log), **how) for a, how in zip(actors, behaviour, strict=False)]
        model, data = ray.get(begun)[0]
        with plain_errors():
            table = measure_with(actors, config, model, data)
        return table, [int(line) for line in log.read_text().split()]

    return run


@pytest.fixture(scope="module")
def by_local(cache_dir: Path) -> Callable[..., PlasticityTable]:
    """The same by `measure_plasticity`, in this process."""

    def measure(**options: Any) -> PlasticityTable:
        config = real_config(cache_dir, **options)
        size = input_size(config.model)
        data = load_train_val(config.data, image_size=size)
        base = build_model(config.model, num_classes=len(data.classes), cache_dir=cache_dir)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as the actors have: a sum's order is part of its last digit
        try:
            return measure_plasticity(
                base.module,
                base.spec,
                load_source(config.data, image_size=size),
                data.train,
                config.plasticity,
                device=torch.device("cpu"),
                model_digest=base.facts.digest,
            )
        finally:
            torch.set_num_threads(threads)

    return measure


Share = Callable[..., tuple[PlasticityTable, list[int]]]


@pytest.mark.ray
def test_one_two_and_no_actors_give_the_same_table(
    share: Share, crew: tuple[Any, Any, Any], by_local: Callable[..., PlasticityTable]
) -> None:
    alone, batches = share(crew[:1], **SCORED)
    assert sorted(batches) == list(range(6))
    assert {row.num_pairs for row in alone.rows} == {45}
    together, batches = share(crew[:2], [{"delay_s": 0.05}, {}], **SCORED)
    assert sorted(batches) == list(range(6))
    assert comparable(together) == comparable(alone)
    local = by_local()
    assert set(alone.scores) == set(SCORED["scores"])
    settings = {**alone.settings, "scores": []}
    assert comparable(replace(alone, scores={}, settings=settings)) == comparable(local)


@pytest.mark.ray
def test_stopping_early_is_the_same_with_any_number_of_actors(
    share: Share, crew: tuple[Any, Any, Any], by_local: Callable[..., PlasticityTable]
) -> None:
    alone, _ = share(crew[:1], **STOPS)
    assert {row.num_pairs for row in alone.rows} < {16, 24, 32, 40, 48, 56}  # neither the first look nor the end
    assert comparable(share(crew[:2], **STOPS)[0]) == comparable(alone)
    assert comparable(share(crew[:2], [{"delay_s": 0.1}, {}], **STOPS)[0]) == comparable(alone)
    assert comparable(by_local(**STOPS)) == comparable(alone)


@pytest.mark.ray
def test_an_error_of_ours_arrives_as_itself(crew: tuple[Any, Any, Any], cache_dir: Path) -> None:
    with pytest.raises(ModelError, match="block 1 mha hold NaN") as caught, plain_errors():
        ray.get(crew[0].broken.remote())
    assert type(caught.value) is ModelError
    config = real_config(cache_dir)
    config.model.weights = "/nowhere/weights.safetensors"
    with pytest.raises(ModelError, match="no such weights file"), plain_errors():
        ray.get(crew[0].begin.remote(config, ""))


@pytest.mark.ray
def test_a_killed_process_costs_no_digit_and_no_finished_batch(
    share: Share, crew: tuple[Any, Any, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Last of the file's: the actor is gone. It is the first one, so that another takes over all it was."""
    alone, _ = share(crew[:1])
    with caplog.at_level(logging.WARNING):
        table, batches = share([crew[2], crew[0]], [{"dies_at": 3}, {"delay_s": 0.3}])
    assert comparable(table) == comparable(alone)
    assert sorted(batches) == list(range(6))
    assert "an actor of the pre-pass was lost; 1 are left" in caplog.messages
    with pytest.raises(ClusterError, match="every actor of the pre-pass was lost"):
        measure_with(crew[2:], paper_config(), MODEL, DATA)
