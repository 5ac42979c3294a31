import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unfreeze.data.sets.splits import paper_split, stratified_split, stratified_subset
from unfreeze.errors import DataError

SIZES = st.lists(st.integers(2, 30), min_size=1, max_size=6)


def shuffled_labels(sizes: list[int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))


def names(sizes: list[int]) -> list[str]:
    return [f"class-{label}" for label in range(len(sizes))]


@settings(deadline=None, database=None)
@given(SIZES, st.floats(0.01, 0.99), st.integers(0, 2**40))
def test_a_split_covers_everything_once_and_keeps_the_shares(sizes: list[int], share: float, seed: int) -> None:
    labels = shuffled_labels(sizes)
    rest, part = stratified_split(labels, share, seed=seed, purpose="val", classes=names(sizes))
    assert sorted([*rest, *part]) == list(range(len(labels)))
    assert (np.diff(rest) > 0).all()
    assert (np.diff(part) > 0).all()
    for label, size in enumerate(sizes):
        taken = int((labels[part] == label).sum())
        assert 1 <= taken <= size - 1
        assert abs(taken - share * size) <= 1


def test_a_split_is_a_function_of_labels_seed_and_purpose() -> None:
    labels = shuffled_labels([40, 40])

    def part(seed: int, purpose: str) -> list[int]:
        return stratified_split(labels, 0.3, seed=seed, purpose=purpose, classes=names([40, 40]))[1].tolist()

    assert part(0, "val") == part(0, "val")
    assert part(0, "val") != part(1, "val")
    assert part(0, "val") != part(0, "test")


def test_a_class_is_split_the_same_whatever_the_others_hold() -> None:
    small, large = np.array([0] * 20 + [1] * 5), np.array([0] * 20 + [1] * 50)
    parts = [stratified_split(x, 0.25, seed=0, purpose="val", classes=names([1, 1]))[1] for x in (small, large)]
    assert parts[0][parts[0] < 20].tolist() == parts[1][parts[1] < 20].tolist()


def test_classes_with_too_few_images_are_named() -> None:
    labels = np.array([0, 0, 1, 3, 3])
    with pytest.raises(DataError, match=r"two images of each class.* dog, owl;") as caught:
        stratified_split(labels, 0.5, seed=0, purpose="val", classes=["cat", "dog", "owl", "yak"])
    assert "cat" not in str(caught.value)


@settings(deadline=None, database=None)
@given(SIZES, st.data())
def test_balanced_subsets_are_nested_and_even(sizes: list[int], data: st.DataObject) -> None:
    labels = shuffled_labels(sizes)
    larger = data.draw(st.integers(len(sizes), len(labels)))
    smaller = data.draw(st.integers(len(sizes), larger))
    few, many = (stratified_subset(labels, n, seed=3, purpose="train images", balanced=True) for n in (smaller, larger))
    assert (len(few), len(many)) == (smaller, larger)
    assert set(few) <= set(many)
    assert (np.diff(many) > 0).all()
    counts = np.bincount(labels[few], minlength=len(sizes))
    assert counts.min() >= 1
    # A class may lag behind the largest share by one image, or because it has no more.
    assert all(count >= counts.max() - 1 or count == size for count, size in zip(counts, sizes, strict=True))


@settings(deadline=None, database=None)
@given(SIZES, st.data())
def test_proportional_subsets_are_nested_and_keep_the_shares(sizes: list[int], data: st.DataObject) -> None:
    labels = shuffled_labels(sizes)
    larger = data.draw(st.integers(len(sizes), len(labels)))
    smaller = data.draw(st.integers(len(sizes), larger))
    few, many = (
        stratified_subset(labels, n, seed=3, purpose="train images", balanced=False) for n in (smaller, larger)
    )
    assert (len(few), len(many)) == (smaller, larger)
    assert set(few) <= set(many)
    counts = np.bincount(labels[few], minlength=len(sizes))
    assert counts.min() >= 1
    # What a class has beyond its one image is the same share of every class, to one image.
    shares = [((count - 1) / size, (count + 1) / size) for count, size in zip(counts, sizes, strict=True)]
    assert max(low for low, _ in shares) <= min(high for _, high in shares) + 1e-9


def test_uneven_classes_stay_uneven_unless_asked() -> None:
    labels = shuffled_labels([900, 90, 10])
    counts = [
        np.bincount(labels[stratified_subset(labels, 100, seed=0, purpose="x", balanced=balanced)]).tolist()
        for balanced in (False, True)
    ]
    assert counts == [[90, 9, 1], [45, 45, 10]]


@pytest.mark.parametrize("limit", [None, 9, 10])
def test_no_limit_or_a_generous_one_takes_all(limit: int | None) -> None:
    assert stratified_subset(shuffled_labels([4, 5]), limit, seed=0, purpose="x", balanced=True).tolist() == list(
        range(9)
    )


def test_subsets_differ_by_seed() -> None:
    labels = shuffled_labels([50, 50])
    chosen = [stratified_subset(labels, 20, seed=seed, purpose="x", balanced=True).tolist() for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]


def test_a_limit_below_the_number_of_classes_is_refused() -> None:
    with pytest.raises(DataError, match="val images: 2 images cannot hold one of each of 3 classes"):
        stratified_subset(shuffled_labels([4, 5, 6]), 2, seed=0, purpose="val images", balanced=True)


@pytest.mark.parametrize("num_images", [10, 101, 10_000])
def test_the_paper_s_split_is_sorted_and_covers_everything_once(num_images: int) -> None:
    train, test = paper_split(num_images)
    assert len(train) == int(0.8 * num_images)
    assert sorted([*train, *test]) == list(range(num_images))
    assert (np.diff(train) > 0).all()
    assert (np.diff(test) > 0).all()


def test_the_paper_s_split_is_that_of_seed_42() -> None:
    """NumPy's legacy generator is frozen, so these numbers are for ever."""
    assert paper_split(10)[1].tolist() == [3, 6]
    assert paper_split(20)[1].tolist() == [6, 7, 10, 14]
