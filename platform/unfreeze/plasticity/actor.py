"""The pre-pass on Ray: actors look at model and data, share the pairs, and go away, GPUs and all.

The driver imports this file, so the actor's methods import torch and timm: seconds of CPU that it never needs.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Generator, Sequence
from typing import Any

import ray

from unfreeze.config import Config
from unfreeze.errors import ClusterError
from unfreeze.plasticity.measurement import Measurement, count_batches, count_images
from unfreeze.plasticity.sequential import BatchRates
from unfreeze.records import DataFacts, ModelFacts, PlasticityBound, PlasticityTable

logger = logging.getLogger(__name__)

_IN_FLIGHT = 2  # batches an actor holds: one is measured while the next one's images are read

# How the end of an actor shows: it, its node or what it computed is gone, or Ray's memory monitor took it.
LOST = (
    ray.exceptions.RayActorError,
    ray.exceptions.OutOfMemoryError,
    ray.exceptions.NodeDiedError,
    ray.exceptions.ObjectLostError,
)

Scores = dict[str, dict[str, float]]


class PrePass:
    """Holds model and data on a node that has them; the driver may have neither. For `max_concurrency` 2."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._measuring = threading.Lock()

    def facts(self) -> tuple[ModelFacts, DataFacts]:
        """Load model and data; what the driver needs to plan the sweep. Called first.

        Raises:
            ModelError, DataError, StorageError: everything that can be wrong with either, before any trial starts.
        """
        import torch

        from unfreeze.data.sets.catalog import load_source, load_test, load_train_val
        from unfreeze.data.sets.remarks import look_over
        from unfreeze.models.build import build_base, input_size
        from unfreeze.plasticity.estimator import Estimator, choose_device

        torch.set_num_threads(max(1, int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1))))
        config = self._config
        size = input_size(config.model)
        self._data = load_train_val(config.data, image_size=size)
        test = load_test(config.data, image_size=size)  # for its digest, and unreadable files; no model sees it yet
        notes = look_over(config.data, self._data, test)
        source = load_source(config.data, image_size=size)
        self._device = choose_device(config.plasticity)
        self._base = build_base(config, num_classes=len(self._data.classes))
        self._estimator = Estimator(
            self._base.module, self._base.spec, source, self._data.train, config.plasticity, device=self._device
        )
        facts = DataFacts(
            name=config.data.name,
            digest=self._data.digest,
            pairs_digest=self._estimator.pairs_digest,
            classes=self._data.classes,
            num_train=len(self._data.train),
            num_val=len(self._data.val),
            num_test=len(test),
            test_digest=test.digest,
            notes=notes,
            num_source=len(source),
            bad_files=tuple(dict.fromkeys(self._data.bad_files + test.array.bad_files + source.array.bad_files)),
        )
        return self._base.facts, facts

    def rates(self, index: int) -> BatchRates:
        """Measure batch ``index`` of the pairs."""
        loaded = self._estimator.load(index)
        with self._measuring:
            return self._estimator.rates(loaded)

    def finish(self, measurement: Measurement) -> tuple[list[PlasticityBound], Scores]:
        """Theoretical bounds for what was measured, and the rival scores asked for."""
        config = self._config.plasticity
        with self._measuring:  # a batch that nobody needs any more may still be at the model
            bounds = self._estimator.bounds(measurement)
            if not config.scores:
                return bounds, {}
            from unfreeze.plasticity.scores import rival_scores

            scores = rival_scores(
                config.scores,
                self._base.module,
                self._base.spec,
                self._data.train,
                classifier=self._base.classifier,
                num_images=config.score_images,
                batch_size=config.batch_size,
                seed=config.seed,
                device=self._device,
            )
            return bounds, scores


def measure_with(actors: Sequence[Any], config: Config, model: ModelFacts, data: DataFacts) -> PlasticityTable:
    """Plasticity by ``actors``, of which the first has given its `facts`; the others join when they can.

    Batches are merged in the order of their index, and the rule that stops looks at them in that order: on
    like machines neither the number of actors nor their speed nor the loss of one changes a digit.

    Raises:
        ClusterError: every actor was lost.
    """
    started = time.perf_counter()
    measurement = Measurement(model.num_blocks, config.plasticity)
    workers = _Workers(actors, (model.digest, data.pairs_digest))
    num_images = count_images(data.num_source, data.num_train, config.plasticity)
    measurement.settle(workers.batches(count_batches(num_images, config.plasticity)))
    bounds, scores = workers.ask("finish", measurement)
    return measurement.table(
        bounds=bounds,
        scores=scores,
        seconds=time.perf_counter() - started,
        model_digest=model.digest,
        data_digest=data.pairs_digest,
    )


class _Workers:
    """The actors that are left, and what each is doing."""

    def __init__(self, actors: Sequence[Any], digests: tuple[str, str]) -> None:
        """``digests`` of weights and images, as the first actor found them."""
        self._digests = digests
        self._ready = [actors[0]]
        self._joining = {actor.facts.remote(): actor for actor in actors[1:]}

    def batches(self, num_batches: int) -> Generator[BatchRates]:
        """Every batch, in index order; those of a lost actor are measured by another."""
        waiting = deque(range(num_batches))
        running: dict[Any, tuple[Any, int]] = {}
        done: dict[int, BatchRates | ray.exceptions.RayTaskError] = {}
        for index in range(num_batches):
            while index not in done:
                self._hand_out(waiting, running)
                reference = ray.wait([*running, *self._joining], num_returns=1)[0][0]
                if reference in self._joining:
                    self._join(reference)
                    continue
                actor, batch = running.pop(reference)
                try:
                    done[batch] = ray.get(reference)
                except ray.exceptions.RayTaskError as error:
                    done[batch] = error  # of interest only if the batch is
                except LOST:
                    held = [ref for ref, (holder, _) in running.items() if holder is actor]
                    waiting.extendleft(sorted([batch, *(running.pop(ref)[1] for ref in held)], reverse=True))
                    self._lose(actor)
            result = done.pop(index)
            if isinstance(result, ray.exceptions.RayTaskError):
                raise result
            yield result

    def ask(self, method: str, *arguments: Any) -> Any:
        """Have any one actor do it, another when that one is lost."""
        while True:
            if not self._ready:
                self._join(next(iter(self._joining)))
                continue
            actor = self._ready[0]
            try:
                return ray.get(getattr(actor, method).remote(*arguments))
            except LOST:
                self._lose(actor)

    def _hand_out(self, waiting: deque[int], running: dict[Any, tuple[Any, int]]) -> None:
        for actor in self._ready:
            held = sum(holder is actor for holder, _ in running.values())
            for _ in range(min(_IN_FLIGHT - held, len(waiting))):
                batch = waiting.popleft()
                running[actor.rates.remote(batch)] = (actor, batch)

    def _join(self, reference: Any) -> None:
        actor = self._joining.pop(reference)
        try:
            model, data = ray.get(reference)
        except LOST:
            self._lose(actor)
            return
        for what, own, theirs in (
            ("weights", self._digests[0], model.digest),
            ("images", self._digests[1], data.pairs_digest),
        ):
            if own != theirs:
                raise ClusterError(f"the nodes of this cluster hold different {what}; give a place that all can reach")
        self._ready.append(actor)

    def _lose(self, actor: Any) -> None:
        self._ready = [holder for holder in self._ready if holder is not actor]
        left = len(self._ready) + len(self._joining)
        logger.warning("an actor of the pre-pass was lost; %d are left", left)
        if not left:
            raise ClusterError(
                "every actor of the pre-pass was lost, out of memory perhaps; lower plasticity.batch_size"
            )
