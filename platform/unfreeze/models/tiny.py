"""`unfreeze_tiny`, the embedded Vision Transformer; importing this module makes it known to timm."""

from pathlib import Path
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn


def tiny_weights_path() -> Path:
    """The shipped weights, float16 safetensors with the glyph classifier; the recipe lies beside them as `.json`."""
    return Path(__file__).parent / "tiny" / "tiny_vit.safetensors"


# timm's registration looks for a module variable of this name.
default_cfgs = generate_default_cfgs(
    {
        "unfreeze_tiny.glyphs": {
            "file": str(tiny_weights_path()),
            "num_classes": 38,
            "input_size": (3, 32, 32),
            "fixed_input_size": True,
            "crop_pct": 1.0,
            "interpolation": "bicubic",
            "mean": (0.22, 0.22, 0.22),  # of the rendered glyphs, two digits
            "std": (0.33, 0.33, 0.33),
            "first_conv": "patch_embed.proj",
            "classifier": "head",
            "license": "apache-2.0",
        }
    }
)


@register_model
def unfreeze_tiny(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """A ViT for 32 × 32 pixels: patch 8 (17 tokens), width 64, 6 blocks, 2 heads; 0.32 M parameters.

    ``pretrained=True`` loads the shipped weights (no download); with ``num_classes`` other than 38 timm leaves the
    glyph classifier out and keeps the new one's random start. ``checkpoint_path=`` is timm's strict load into the model
    as it stands, so for the shipped file it needs 38 classes.
    """
    architecture = {"patch_size": 8, "embed_dim": 64, "depth": 6, "num_heads": 2}
    return build_model_with_cfg(
        VisionTransformer,
        "unfreeze_tiny",
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": 3, "feature_cls": "getter"},
        **{**architecture, **kwargs},
    )
