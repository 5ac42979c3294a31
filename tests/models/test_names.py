"""timm's names, read from its sources, are those that it knows once it is imported."""

import sys

import pytest
import timm
from timm.models._registry import _deprecated_models

from unfreeze.models.names import say_unknown, unknown_name


def test_no_name_that_timm_knows_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "timm")
    names = [
        *timm.list_models()[::20],
        *list(_deprecated_models)[::20],
        *timm.list_models("vit_*", pretrained=True)[:5],
    ]
    assert [name for name in names if unknown_name(name) is not None] == []
    assert unknown_name("local-dir:/somewhere") is None
    assert unknown_name("unfreeze_tiny") is None


def test_a_slip_comes_with_suggestions(monkeypatch: pytest.MonkeyPatch) -> None:
    assert unknown_name("deit_tny") is None  # timm is here and asked itself: users register models of their own
    monkeypatch.delitem(sys.modules, "timm")
    assert unknown_name("deit_tny") == say_unknown("deit_tny")
    assert say_unknown("deit_tny").startswith("timm knows no model 'deit_tny'; did you mean deit_tiny_patch16_224, ")
    assert say_unknown("vit_base_patch16_225").count("vit_base_patch16_224") == 1
    assert say_unknown("qqqqqqqqq") == "timm knows no model 'qqqqqqqqq'"
