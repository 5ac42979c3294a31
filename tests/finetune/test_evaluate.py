from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from unfreeze.data.pixels.part import Part
from unfreeze.finetune.evaluate import Evaluation, evaluate
from unfreeze.finetune.network import make_autocast
from unfreeze.finetune.warm import WarmModel

CPU = torch.device("cpu")


def plain_evaluation(warm: WarmModel, part: Part) -> Evaluation:
    """One image at a time."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (warm.base.spec.mean, warm.base.spec.std))
    correct, loss = 0, 0.0
    warm.module.eval()
    for index in part.indices:
        pixels = (torch.from_numpy(part.array.images[index]).permute(2, 0, 1).float() / 255 - mean) / std
        with torch.no_grad():
            logits = warm.module(pixels[None])[0]
        label = int(part.array.labels[index])
        correct += int(logits.argmax()) == label
        loss += F.cross_entropy(logits[None], torch.tensor([label])).item()
    return Evaluation(correct=correct, count=len(part), loss=loss / len(part))


@pytest.mark.parametrize("num_images", [1, 2, 19, 64])
@pytest.mark.parametrize("batch_size", [1, 7, 19, 200])
def test_counts_are_exact(
    num_images: int, batch_size: int, make_warm: Callable[..., WarmModel], make_part: Callable[[int, int], Part]
) -> None:
    warm, part = make_warm(proj_drop_rate=0.5), make_part(num_images, 3)
    warm.module.train()  # dropout must not take part
    result = evaluate(
        warm.module, part, warm.base.spec, batch_size=batch_size, autocast=make_autocast("float32", CPU), device=CPU
    )
    expected = plain_evaluation(warm, part)
    assert (result.correct, result.count) == (expected.correct, expected.count)
    assert result.accuracy == expected.correct / num_images
    assert result.loss == pytest.approx(expected.loss, rel=1e-5)
    assert not warm.module.training


def test_a_view_of_the_images_is_evaluated_alone(
    make_warm: Callable[..., WarmModel], make_part: Callable[[int, int], Part]
) -> None:
    warm, whole = make_warm(), make_part(30, 3)
    view = Part(whole.array, whole.indices[::-3])
    result = evaluate(
        warm.module, view, warm.base.spec, batch_size=4, autocast=make_autocast("float32", CPU), device=CPU
    )
    expected = plain_evaluation(warm, view)
    assert (result.correct, result.count) == (expected.correct, 10)


def test_evaluation_takes_no_gradients(
    make_warm: Callable[..., WarmModel], make_part: Callable[[int, int], Part]
) -> None:
    warm = make_warm()
    warm.prepare("all", seed=0, train_head=True)
    evaluate(
        warm.module, make_part(5, 0), warm.base.spec, batch_size=5, autocast=make_autocast("float32", CPU), device=CPU
    )
    assert all(parameter.grad is None for parameter in warm.module.parameters())
