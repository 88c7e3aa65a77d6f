"""Names, sizes, wildcards, and another package's encoders."""

import sys
from importlib.metadata import EntryPoint

import pytest

import backbones
from backbones import registry
from backbones.registry import Registry


def test_the_six_encoders_have_every_size():
    six = ["longformer", "mamba", "pairwise", "query_attention", "rwkv", "transformer"]
    assert set(six) <= set(backbones.available())
    assert {"longformer", "transformer"} <= set(backbones.available("*former")) and "mamba" not in backbones.available(
        "*former"
    )
    for name in six:
        assert backbones.sizes(name) == ["mini", "tiny", "small", "base"]


def test_settings_override_the_size():
    encoder = backbones.create("mamba", "mini", depth=2, query_attention_layers=[1])
    assert [type(layer).__name__ for layer in encoder.layers] == ["BidirectionalMamba"] * 2 + ["QueryAttention"]
    with pytest.raises(ValueError, match="must lie in 0 … 1"):
        backbones.create("mamba", depth=2, query_attention_layers=[2])


def test_wrong_names_are_answered_with_the_nearest():
    with pytest.raises(ValueError, match="Unknown backbone 'mamab'; did you mean 'mamba'"):
        backbones.create("mamab")
    with pytest.raises(ValueError, match="no size 'tinny'; did you mean 'tiny'"):
        backbones.create("mamba", "tinny")


def test_another_package_adds_an_encoder_by_an_entry_point(tmp_path, monkeypatch):
    (tmp_path / "their_package.py").write_text(
        "import test_registry\n\n@test_registry.THEIRS.register('theirs')\nclass Theirs: ...\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(sys.modules, "test_registry", sys.modules[__name__])
    points = [EntryPoint("theirs", "their_package", "some.group")]
    monkeypatch.setattr(registry, "entry_points", lambda group: points if group == "some.group" else [])
    assert THEIRS.available() == ["theirs"]


def test_one_name_cannot_be_taken_twice():
    own = Registry("thing", "backbones.ops", "none")
    own.register("a")(Registry)
    own.register("a")(Registry)
    with pytest.raises(ValueError, match="registered twice"):
        own.register("a")(EntryPoint)


THEIRS = Registry("thing", "backbones.ops", "some.group")
