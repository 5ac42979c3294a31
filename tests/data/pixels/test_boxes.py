"""Which crops: torchvision's draw for images of any size, and views that do not depend on the trial."""

import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.transforms import RandomResizedCrop

from unfreeze.data.pixels.boxes import Crops, step_crops, view_crops


def sizes_of(count: int, width: int, height: int) -> torch.Tensor:
    return torch.tensor([[width, height]]).expand(count, 2)


def drawn(how: str, sizes: torch.Tensor) -> Crops:
    if how == "step":
        return step_crops(sizes, seed=3)
    return view_crops(sizes, np.arange(len(sizes)) // 3, np.arange(len(sizes)) % 3)


@pytest.mark.parametrize("how", ["step", "view"])
@pytest.mark.parametrize(("width", "height"), [(300, 200), (100, 320), (9, 9), (64, 64), (256, 256), (640, 480)])
def test_boxes_are_drawn_as_torchvision_draws_them(how: str, width: int, height: int) -> None:
    """Inside the image, and the same distribution of area, ratio and place, by Kolmogorov's and Smirnov's test."""
    count = 3000
    crops = drawn(how, sizes_of(count, width, height))
    left, top, wide, high = crops.boxes.T
    assert (crops.boxes[:, :2] >= 0).all()
    assert (crops.boxes[:, 2:] >= 1).all()
    assert (left + wide <= width).all()
    assert (top + high <= height).all()
    torch.manual_seed(0)
    image = torch.empty(1, height, width)
    theirs = torch.tensor([RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(count)])
    their_top, their_left, their_high, their_wide = theirs.T
    pairs = [(wide * high, their_wide * their_high), (wide / high, their_wide / their_high)]
    pairs += [(left, their_left), (top, their_top)]
    for ours, other in pairs:
        assert stats.ks_2samp(ours.numpy(), other.numpy()).pvalue > 1e-3
    assert abs(crops.flips.float().mean().item() - 0.5) < 0.05


@pytest.mark.parametrize(("width", "height"), [(2000, 20), (20, 2000), (1, 1), (1, 30)])
def test_where_no_box_fits_the_largest_one_in_the_middle_is_taken(width: int, height: int) -> None:
    crops = step_crops(sizes_of(200, width, height), seed=0)
    torch.manual_seed(0)
    theirs = [RandomResizedCrop.get_params(torch.empty(1, height, width), [0.08, 1.0], [3 / 4, 4 / 3]) for _ in "ab"]
    top, left, high, wide = (max(value, 1) if index > 1 else value for index, value in enumerate(theirs[0]))
    if min(width, height) > 1:
        assert [left, top, wide, high] in crops.boxes.tolist()
    assert (crops.boxes[:, :2] >= 0).all()
    assert (crops.boxes[:, :2] + crops.boxes[:, 2:] <= torch.tensor([width, height])).all()


def test_a_view_is_its_own_whatever_is_drawn_with_it() -> None:
    positions, views = np.array([4, 9, 4, 4]), np.array([0, 1, 1, 0])
    crops = view_crops(sizes_of(4, 90, 70), positions, views)
    alone = view_crops(sizes_of(1, 90, 70), np.array([9]), np.array([1]))
    assert torch.equal(crops.boxes[1:2], alone.boxes)
    assert torch.equal(crops.boxes[0], crops.boxes[3])
    assert not torch.equal(crops.boxes[0], crops.boxes[2])
