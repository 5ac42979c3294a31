"""The images of a sweep as MLflow's data sets: each part with its digest, size, schema and what it was used for."""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from unfreeze.config import redact
from unfreeze.records import DataFacts

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput

_MAX_DIGEST = 36  # characters that MLflow has room for
_CONTEXT = "mlflow.data.context"


def describe_parts(data: DataFacts) -> dict[str, tuple[str, int]]:
    """Context → digest and number of images. Training and validation images have one digest, of both; so have the
    source images, with the training images they were paired with."""
    digest = data.digest[:_MAX_DIGEST]
    return {
        "source": ((data.pairs_digest or digest)[:_MAX_DIGEST], data.num_source),
        "train": (digest, data.num_train),
        "validation": (digest, data.num_val),
        "test": ((data.test_digest or digest)[:_MAX_DIGEST], data.num_test),
    }


def dataset_inputs(config: Mapping[str, Any], data: DataFacts) -> "list[DatasetInput]":
    """The four parts. ``config``: the sweep's, which says where the images lie."""
    import numpy as np
    from mlflow.data.schema import TensorDatasetSchema
    from mlflow.entities import Dataset, DatasetInput, InputTag
    from mlflow.types import Schema, TensorSpec

    images = Schema([TensorSpec(np.dtype(np.uint8), (-1, -1, -1, 3), "image")])  # any height and width, RGB
    labels = Schema([TensorSpec(np.dtype(np.int64), (-1,), "label")])
    schema = json.dumps(TensorDatasetSchema(images, labels).to_dict())
    inputs = []
    for context, (digest, count) in describe_parts(data).items():
        place = config["data"]["source_path" if context == "source" else "path"]
        kind, source = _source(place, data.name)
        dataset = Dataset(
            # With the part in its name: MLflow takes two of one name and digest for one.
            name=f"{data.name}/{context}",
            digest=digest,
            source_type=kind,
            source=json.dumps(source),
            schema=schema,
            profile=json.dumps({"num_rows": count, "num_classes": len(data.classes)}),
        )
        inputs.append(DatasetInput(dataset, [InputTag(_CONTEXT, context)]))
    return inputs


def _source(place: str | None, name: str) -> tuple[str, dict[str, Any]]:
    """A kind of source that MLflow knows, and what it takes."""
    if place is None:
        return "code", {"tags": {"unfreeze.data": name}}
    return ("s3" if place.startswith("s3://") else "local"), {"uri": redact(place)}
