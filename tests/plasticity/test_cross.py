"""Groups in which every source meets every target, against the pairs computed one by one in float64."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from unfreeze.config import PlasticityConfig
from unfreeze.data.pixels.crops import InputSpec
from unfreeze.data.pixels.part import Part
from unfreeze.errors import DataError
from unfreeze.plasticity.local import measure_plasticity
from unfreeze.plasticity.sequential import QUANTILES, confidence_radius
from unfreeze.records import COMPONENTS, MODES, PlasticityTable

Measure = Callable[..., PlasticityTable]


@pytest.fixture
def measure(spec: InputSpec) -> Measure:
    def run(module: nn.Module, source: Part, target: Part, **settings: Any) -> PlasticityTable:
        config = PlasticityConfig(
            **{"modes": list(MODES), "num_pairs": 1000, "batch_size": 12, "stop_early": False, **settings}
        )
        return measure_plasticity(module, spec, source, target, config, device=torch.device("cpu"), model_digest="")

    return run


def plain_groups(plain_rates: Any, model: nn.Module, source: Any, target: Any, c: int) -> list[dict[str, np.ndarray]]:
    """For each group, mode → (its pairs, blocks, components), pairs of equal images left out."""
    groups = []
    xs, ys = np.concatenate(source.taken), np.concatenate(target.taken)
    for start in range(0, len(xs), c):
        chosen = slice(start, start + c)
        pairs = [plain_rates(model, x, y) for x in xs[chosen] for y in ys[chosen] if not np.array_equal(x, y)]
        groups.append({mode: np.stack([pair[mode] for pair in pairs]) for mode in MODES})
    return groups


def assert_table_is_of(table: PlasticityTable, groups: list[dict[str, np.ndarray]]) -> None:
    """Every row follows from the groups' means, its maximum from the single pairs."""
    for row in table.rows:
        column = COMPONENTS.index(row.component)
        pairs = [group[row.mode][:, :, column] for group in groups]
        chosen = [p.mean(1) if row.block is None else p[:, row.block] for p in pairs]
        observations = np.array([values.mean() for values in chosen])
        sd = observations.std(ddof=1)
        radius = confidence_radius(sd, len(observations), 0.05)
        name = f"{row.mode} {row.block} {row.component}"
        assert row.mean == pytest.approx(observations.mean(), rel=1e-5), name
        assert row.sd == pytest.approx(sd, rel=1e-3), name
        assert row.low == pytest.approx(observations.mean() - radius, rel=1e-3), name
        assert row.high == pytest.approx(observations.mean() + radius, rel=1e-3), name
        assert row.quantiles == pytest.approx(np.quantile(observations, QUANTILES), rel=1e-5), name
        assert row.num_pairs == sum(len(values) for values in chosen)
        if row.block is None:
            assert row.maximum is None
        else:
            assert row.maximum == pytest.approx(max(values.max() for values in chosen), rel=5e-5), name


@pytest.mark.parametrize(("c", "batch_size"), [(1, 4), (2, 4), (2, 10), (3, 3)])
def test_every_source_of_a_group_meets_every_target_of_it(
    c: int, batch_size: int, measure: Measure, make_vit: Any, make_part: Any, random_images: Any, plain_rates: Any
) -> None:
    model, source, target = make_vit(), make_part(random_images(1, 11)), make_part(random_images(2, 12))
    table = measure(model, source, target, cross=c, batch_size=batch_size)
    groups = plain_groups(plain_rates, model, source, target, c)
    assert len(groups) == 11 // c
    assert_table_is_of(table, groups)
    for part in (source, target):  # no image twice, and none of an incomplete group
        assert len(np.unique(np.concatenate(part.taken), axis=0)) == 11 // c * c


def test_a_group_of_one_is_a_plain_pair(measure: Measure, make_vit: Any, make_part: Any, random_images: Any) -> None:
    """The pairs of a group are those that plain measurements of its images would have given."""
    model, c = make_vit(), 2
    xs, ys = random_images(1, 4), random_images(2, 4)
    source, target = make_part(xs), make_part(ys)
    crossed = measure(model, source, target, cross=c, batch_size=2)
    xs, ys = np.concatenate(source.taken), np.concatenate(target.taken)
    means = []
    for shift in range(c):  # within each group, source i with target i + shift
        partners = np.concatenate([np.roll(ys[start : start + c], -shift, axis=0) for start in (0, c)])
        means.append([])
        for x, y in zip(xs, partners, strict=True):
            twice = measure(model, *(make_part(np.repeat(image[None], 2, axis=0)) for image in (x, y)), batch_size=1)
            means[-1].append([row.mean for row in twice.rows])
    expected = np.mean(means, axis=(0, 1))
    np.testing.assert_allclose([row.mean for row in crossed.rows], expected, rtol=1e-5)


def test_an_equal_pair_leaves_the_others_of_its_group(
    measure: Measure, make_vit: Any, make_part: Any, random_images: Any, plain_rates: Any
) -> None:
    """One image is among the sources and the targets: where it meets itself there is no rate of change."""
    model, c = make_vit(), 3
    for seed in range(20):  # until both copies fall into one group
        targets = np.concatenate([random_images(2, 5), random_images(1, 6)[:1]])
        source, target = make_part(random_images(1, 6)), make_part(targets)
        table = measure(model, source, target, cross=c, batch_size=6, seed=seed)
        if table.skipped_pairs:
            break
    assert table.skipped_pairs == 1
    groups = plain_groups(plain_rates, model, source, target, c)
    assert sorted(len(group["local"]) for group in groups) == [8, 9]
    assert_table_is_of(table, groups)


def test_a_group_of_equal_pairs_alone_is_no_observation(
    measure: Measure, make_vit: Any, make_part: Any, random_images: Any, plain_rates: Any
) -> None:
    one, other = random_images(3, 1), random_images(4, 1)
    model, c = make_vit(), 2
    for seed in range(20):  # sources all alike; until two targets like them make up a group
        targets = np.concatenate([one, one, random_images(2, 4), other, other])
        source, target = make_part(np.repeat(one, 8, axis=0)), make_part(targets)
        table = measure(model, source, target, cross=c, batch_size=4, seed=seed)
        xs, ys = np.concatenate(source.taken), np.concatenate(target.taken)
        same = [(ys[start : start + c] == one).all() for start in range(0, 8, c)]
        if any(same):
            break
    assert sum(same) == 1
    assert table.skipped_pairs == 4
    kept = [position for position in range(8) if not same[position // c]]
    source.taken[:], target.taken[:] = [xs[kept]], [ys[kept]]
    assert_table_is_of(table, plain_groups(plain_rates, model, source, target, c))


@pytest.mark.parametrize(("num_pairs", "groups"), [(8, 2), (11, 2), (12, 3), (1000, 4)])
def test_the_number_of_pairs_is_that_of_whole_groups(
    num_pairs: int, groups: int, measure: Measure, make_vit: Any, make_part: Any, random_images: Any
) -> None:
    source, target = make_part(random_images(1, 9)), make_part(random_images(2, 20))
    table = measure(make_vit(), source, target, cross=2, num_pairs=num_pairs, batch_size=2, modes=["reference"])
    assert {row.num_pairs for row in table.rows} == {4 * groups}
    why = "the images are used up" if num_pairs == 1000 else f"plasticity.num_pairs={num_pairs} are used up"
    assert table.stopped == {"reference": why}


@pytest.mark.parametrize(("num_pairs", "num_images"), [(7, 9), (1000, 3)])
def test_fewer_than_two_groups_are_an_error(
    num_pairs: int, num_images: int, measure: Measure, make_vit: Any, make_part: Any, random_images: Any
) -> None:
    source, target = make_part(random_images(1, num_images)), make_part(random_images(2, 9))
    with pytest.raises(DataError, match="two groups of 2 source and 2 target images"):
        measure(make_vit(), source, target, cross=2, num_pairs=num_pairs, batch_size=2)
