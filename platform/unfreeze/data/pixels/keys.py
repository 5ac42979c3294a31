"""Keys of what is kept from one run to the next: made of the whole input specification, so that no option is forgotten.

Every option of `model`, `data` and `plasticity` is in every key unless it stands here as irrelevant to what is kept
under it. An option that is new is therefore in all of them, at worst for nothing.
"""

import hashlib
import json
from dataclasses import asdict, replace
from typing import Any, Literal

from unfreeze.config import DataConfig, ModelConfig, PlasticityConfig

Kind = Literal["inputs", "plasticity", "decoded", "prefix"]

# Part of every key of its kind: raise it when the numbers stored change for the same options.
FORMATS: dict[Kind, int] = {"inputs": 5, "plasticity": 3, "decoded": 7, "prefix": 2}

# Where something is computed and by how many, never what.
_SPREAD = ("data.cache_dir", "data.cache_gib", "data.num_workers", "plasticity.num_actors")
# What the digest of an array of images has taken in: which images these are, and their pixels.
_IMAGES = (
    *(
        "data.name",
        "data.path",
        "data.train",
        "data.val",
        "data.test",
        "data.domain",
        "data.corruption",
        "data.severity",
        "data.source_path",
    ),
    *(
        "data.val_share",
        "data.test_share",
        "data.split_seed",
        "data.max_train_images",
        "data.max_val_images",
        "data.subset",
    ),
    *("data.crop_share", "data.loading", "data.max_decoded_gib", "data.max_bad_share", "data.max_duplicate_share"),
)
_WEIGHTS = ("model.weights",)  # the digest of the model's parameters has
_VIEWS = ("data.augment", "data.num_views")  # of training images

# A section named whole: none of its options is looked at where such a thing is made.
IRRELEVANT: dict[Kind, frozenset[str]] = {
    # Facts and plasticity, by files that are unchanged.
    "inputs": frozenset(_SPREAD),
    # Plasticity, by the digests of weights and images: of evaluation views, never augmented.
    "plasticity": frozenset((*_SPREAD, *_IMAGES, *_WEIGHTS, *_VIEWS)),
    # Decoded images, by their files; of the model there is the size of the squares.
    "decoded": frozenset(
        (
            *("model", "plasticity", *_SPREAD, *_VIEWS),
            *(
                "data.path",
                "data.train",
                "data.val",
                "data.test",
                "data.source_path",
            ),  # the files' own root is in the key
            # All of `Squares` is in the key, and so how these are applied.
            *("data.crop_share", "data.interpolation", "data.exif", "data.split_seed"),
            *("data.val_share", "data.test_share", "data.max_train_images", "data.max_val_images", "data.subset"),
            *("data.loading", "data.max_decoded_gib", "data.max_bad_share", "data.max_duplicate_share"),
        )
    ),
    # Activations, by the digests of weights and images; the views of each part are in the key.
    "prefix": frozenset(("plasticity", *_SPREAD, *_IMAGES, *_WEIGHTS, *_VIEWS)),
}

_SECTIONS = {"model": ModelConfig, "data": DataConfig, "plasticity": PlasticityConfig}


def specification(kind: Kind, *sections: ModelConfig | DataConfig | PlasticityConfig) -> dict[str, Any]:
    """The options that decide what is kept as ``kind``, and its format: JSON-ready, by dotted name.

    ``sections``: each that is not irrelevant as a whole.
    """
    irrelevant = IRRELEVANT[kind]
    given = {name: section for name, own in _SECTIONS.items() for section in sections if isinstance(section, own)}
    assert given.keys() >= _SECTIONS.keys() - irrelevant, f"{kind} needs {_SECTIONS.keys() - irrelevant}"
    options = {
        f"{name}.{option}": value
        for name, section in given.items()
        if name not in irrelevant
        for option, value in asdict(_in_order(section)).items()
    }
    formats = [FORMATS[kind], FORMATS["decoded"]]  # of other pixels all else is another, known by its files or not
    return {"format": formats} | {name: value for name, value in options.items() if name not in irrelevant}


def _in_order(section: Any) -> Any:
    """Lists whose order says nothing, sorted."""
    if isinstance(section, PlasticityConfig):
        return replace(section, modes=sorted(section.modes), scores=sorted(section.scores))
    return section


def digest_of(*parts: Any) -> str:
    """The key: 32 hexadecimal digits of JSON-ready ``parts``, a `specification` and what it was applied to."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]
