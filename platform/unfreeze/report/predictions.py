"""What an exported model says of images, as text and as CSV."""

import csv
import io
from collections.abc import Sequence

from unfreeze.models.export import Prediction

_SHOWN = 5  # classes of each image, the most probable


def predictions_text(predictions: Sequence[Prediction]) -> str:
    """A line per image: ``photo.jpg: cat 93.10 %, dog 4.02 %``."""
    return "\n".join(f"{each.path}: {_most_probable(each.probabilities)}" for each in predictions)


def predictions_csv(predictions: Sequence[Prediction]) -> str:
    """A row per image with the probability of every class, in the order of the model's outputs."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", "class", "probability", *predictions[0].probabilities])
    for each in predictions:
        writer.writerow([each.path, each.label, each.probability, *each.probabilities.values()])
    return text.getvalue()


def _most_probable(probabilities: dict[str, float]) -> str:
    ranked = sorted(probabilities.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {probability:.2%}" for name, probability in ranked[:_SHOWN])
