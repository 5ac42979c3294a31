"""From batches to the table: merged in index order, so that the numbers do not depend on who computed which batch.

The driver imports this file, so it needs no torch.
"""

import contextlib
from collections.abc import Generator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from unfreeze.config import PlasticityConfig
from unfreeze.errors import DataError
from unfreeze.plasticity.sequential import BatchRates, Standing, merge_extremes
from unfreeze.records import MODES, PlasticityBound, PlasticityTable


class Measurement:
    """The running result of all modes, and whether it is enough."""

    def __init__(self, num_blocks: int, config: PlasticityConfig) -> None:
        self._config = config
        self._standings = {mode: Standing(num_blocks, config) for mode in MODES if mode in config.modes}
        self._num_pairs = self._skipped = 0
        self._token_norms = (0.0, 0)
        self.extremes: dict[str, np.ndarray] = {}  # of the tokens seen, by mode: (3, blocks), see `network.Extremes`
        self.num_tokens = 0  # per image

    def settle(self, batches: Generator[BatchRates]) -> None:
        """Take in batches, in index order, until they are enough; the rest are never asked for."""
        with contextlib.closing(batches):
            for batch in batches:
                if self.add(batch):
                    break

    def add(self, batch: BatchRates) -> bool:
        """Take in the next batch, in index order; True when no more are needed."""
        self._num_pairs += batch.num_pairs
        self._skipped += batch.skipped_pairs
        self._token_norms = (self._token_norms[0] + batch.token_norm[0], self._token_norms[1] + batch.token_norm[1])
        self.num_tokens = batch.token_norm[2]
        self.extremes = merge_extremes([self.extremes, batch.extremes] if self.extremes else [batch.extremes])
        for mode, standing in self._standings.items():
            standing.add(batch.observations[mode], batch.maxima[mode])
        return self._config.stop_early and all(s.is_settled or s.is_precise for s in self._standings.values())

    @property
    def mean_token_norm(self) -> float:
        """Root mean square over an image's embedded tokens, its mean over images."""
        return self._token_norms[0] / self._token_norms[1]

    def table(
        self,
        *,
        bounds: Sequence[PlasticityBound],
        scores: dict[str, dict[str, float]],
        seconds: float,
        model_digest: str,
        data_digest: str,
    ) -> PlasticityTable:
        """
        Raises:
            DataError: fewer than two observations are of different images.
        """
        num_pairs, skipped = self._num_pairs, self._skipped
        if not num_pairs:
            raise DataError(
                f"all {skipped} pairs hold equal images, so there is no rate of change; check the source images"
            )
        if min(standing.count for standing in self._standings.values()) < 2:
            raise DataError(f"of {num_pairs + skipped} pairs all but one hold equal images; check the source images")
        for standing in self._standings.values():
            standing.look()
        return PlasticityTable(
            rows=tuple(row for mode, standing in self._standings.items() for row in standing.rows(mode, num_pairs)),
            skipped_pairs=skipped,
            seconds=seconds,
            model_digest=model_digest,
            data_digest=data_digest,
            rankings=tuple(r for mode, standing in self._standings.items() for r in standing.rankings(mode)),
            stopped={mode: self._reason(standing, num_pairs + skipped) for mode, standing in self._standings.items()},
            bounds=tuple(bounds),
            scores=scores,
            settings=settings_of(self._config),
        )

    def _reason(self, standing: Standing, num_pairs: int) -> str:
        if self._config.stop_early and standing.is_settled:
            return f"the order is settled at {100 * self._config.confidence:g} % confidence"
        if self._config.stop_early and standing.is_precise:
            return f"standard errors are below {100 * self._config.relative_error:g} % of every component's mean"
        if num_pairs + self._config.cross**2 > self._config.num_pairs:
            return f"plasticity.num_pairs={self._config.num_pairs} are used up"
        return "the images are used up"


def count_images(num_source: int, num_target: int, config: PlasticityConfig) -> int:
    """Images of either side that are measured: whole groups of ``cross``, up to ``num_pairs`` pairs.

    Raises:
        DataError: not enough for two observations.
    """
    c = config.cross
    groups = min(num_source // c, num_target // c, config.num_pairs // c**2)
    if groups < 2:
        raise DataError(
            f"plasticity needs two groups of {c} source and {c} target images at least, but plasticity.num_pairs is "
            f"{config.num_pairs} and there are {num_source} source and {num_target} target images"
        )
    return groups * c


def count_batches(num_images: int, config: PlasticityConfig) -> int:
    """Batches that so many images of either side make; the last may be short."""
    return -(-num_images // config.batch_size)


def settings_of(config: PlasticityConfig) -> dict[str, Any]:
    """The options that decide the table, for the record and for the cache's key: all but how the work is spread."""
    settings = {key: value for key, value in asdict(config).items() if key != "num_actors"}
    return {**settings, "modes": [mode for mode in MODES if mode in config.modes], "scores": sorted(config.scores)}
