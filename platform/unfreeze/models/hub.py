"""Whether Hugging Face's hub answers, asked before its client is: where nobody does, as on most batch systems' nodes,
that goes on for three minutes."""

import urllib.error
import urllib.request
from http.client import HTTPException

import timm
from huggingface_hub import constants, try_to_load_from_cache
from timm.models._factory import parse_model_name

from unfreeze.errors import ModelError

_TIMEOUT_S = 5.0
_FILES = ("model.safetensors", "pytorch_model.bin", "open_clip_model.safetensors")


def check_hub(name: str) -> None:
    """For a model of timm's, or ``hf-hub:…``, whose pretrained weights are wanted.

    Raises:
        ModelError: they are not in the hub's cache here, and the hub does not answer within 5 s.
    """
    source, place = parse_model_name(name)
    known = timm.get_pretrained_cfg(place) if source is None else None
    repository = place.partition("@")[0] if source == "hf-hub" else known and known.hf_hub_id
    if not repository or constants.HF_HUB_OFFLINE or _is_cached(repository):
        return
    try:
        urllib.request.urlopen(constants.ENDPOINT, timeout=_TIMEOUT_S).close()
    except urllib.error.HTTPError as error:  # a refusal is an answer
        error.close()
    except (OSError, HTTPException, ValueError) as error:
        raise ModelError(
            f"the weights of model.name={name} are to come from {constants.ENDPOINT} (HF_ENDPOINT), which does not "
            f"answer: {getattr(error, 'reason', error)}; fetch them where it does, with `hf download {repository}` "
            f"into a folder that HF_HOME names here too, or give a file, model.weights=…"
        ) from error


def _is_cached(repository: str) -> bool:
    return any(isinstance(try_to_load_from_cache(repository, file), str) for file in _FILES)
