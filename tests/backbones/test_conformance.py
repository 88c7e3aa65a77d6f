"""All encoders conform, and each rule catches an encoder broken on purpose."""

import pytest
import torch
from torch import nn

import backbones
from backbones import conformance
from backbones._interleaved import InterleavedEncoder, QueryAttention
from backbones.conformance import RULES, ConformanceError, check_backbone, double_precision

# In chunks, as `mamba2` and `gated_deltanet` are; the slow test has all.
ALIKE = ("hybrid", "hydra", "mamba3", "mlstm", "rwkv7")
COMPILED = ("mamba", "rwkv")  # numba compiles their kernels anew for float64, which takes half a minute


@pytest.mark.parametrize("name", [name for name in backbones.available() if name not in ALIKE])
def test_encoder_conforms(name, monkeypatch):
    if name in COMPILED:
        monkeypatch.setattr(conformance, "RULES", [rule for rule in RULES if rule is not double_precision])
    check_backbone(lambda: backbones.create(name, depth=1))


@pytest.mark.slow
@pytest.mark.parametrize("name", backbones.available())
def test_encoder_conforms_as_it_is(name):
    check_backbone(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPILED)
def test_compiled_encoder_conforms_in_double_precision(name):
    double_precision(lambda: backbones.create(name))


class Mean(backbones.SequenceEncoder):
    """A small encoder that conforms: each token plus a projection of the mean of the real ones."""

    def __init__(self):
        super().__init__()
        self.hidden_size, self.linear = 16, nn.Linear(16, 16)

    def forward(self, tokens, layout, mask):
        real = mask[:, :, None]
        mean = torch.where(real, tokens, 0.0).sum(1, keepdim=True) / real.sum(1, keepdim=True)
        return tokens + self.linear(mean)


class Narrow(Mean):
    def forward(self, tokens, layout, mask):
        return super().forward(tokens, layout, mask)[:, :-1]


class Leaking(Mean):
    def forward(self, tokens, layout, mask):
        return super().forward(tokens, layout, torch.ones_like(mask))


class Unpadded(Mean):
    def forward(self, tokens, layout, mask):
        return super().forward(tokens, layout, mask) * tokens.shape[1]


class BatchNormed(Mean):
    def forward(self, tokens, layout, mask):
        return super().forward(tokens - tokens.mean(0), layout, mask)


class Idle(Mean):
    def __init__(self):
        super().__init__()
        self.unused = nn.Linear(16, 16)


class Recurrent(Mean):
    def forward(self, tokens, layout, mask):
        decay = 0.9 ** torch.arange(tokens.shape[1])[None, :, None]
        return tokens + decay * self.linear(torch.where(mask[:, :, None], tokens, 0.0).sum(1, keepdim=True))


class Positional(QueryAttention):
    def forward(self, tokens, layout, mask):
        return super().forward(tokens, layout, mask) + torch.arange(tokens.shape[1])[None, :, None]


class Ordered(InterleavedEncoder):
    def __init__(self):
        super().__init__(16, 1, lambda: Positional(16, 2, 16), heads=2)


class Noisy(Mean):
    def forward(self, tokens, layout, mask):
        return super().forward(tokens, layout, mask) + 1e-6 * torch.rand(())


class Unsaved(Mean):
    def __init__(self):
        super().__init__()
        self.shift = torch.rand(16)

    def forward(self, tokens, layout, mask):
        return super().forward(tokens, layout, mask) + self.shift


class Widening(Mean):
    def forward(self, tokens, layout, mask):
        return super().forward(tokens, layout, mask) + torch.zeros(1)


class Narrowing(Mean):
    def forward(self, tokens, layout, mask):
        output = super().forward(tokens, layout, mask)
        return output.float() if output.dtype == torch.float64 else output


class Overflowing(Mean):
    def forward(self, tokens, layout, mask):
        output = super().forward(tokens, layout, mask)
        return output * (float("nan") if torch.is_autocast_enabled("cpu") else 1.0)


class Quadratic(Mean):
    def forward(self, tokens, layout, mask):
        scores = (tokens @ tokens.transpose(1, 2)).masked_fill(~mask[:, None], float("-inf"))
        return super().forward(tokens, layout, mask) + scores.softmax(-1) @ torch.where(mask[:, :, None], tokens, 0.0)


class Modest(Mean):
    state_size = 0


BROKEN = {
    "nothing_carried": Modest,
    "shapes": Narrow,
    "masked_tokens": Leaking,
    "appended_padding": Unpadded,
    "batch_invariance": BatchNormed,
    "gradients": Idle,
    "query_reach": Recurrent,
    "query_attention_order": Ordered,
    "determinism": Noisy,
    "state_dict": Unsaved,
    "half_precision": Widening,
    "double_precision": Narrowing,
    "autocast": Overflowing,
    "memory": Quadratic,
}


@pytest.mark.parametrize(
    ("name", "state_size"),
    [
        *(("mamba", 1536), ("rwkv", 384), ("mamba2", 6144), ("gated_deltanet", 6144), ("rwkv7", 6144)),
        *(("linear_attention", 6336), ("mlstm", 6336), ("hybrid", None), ("hydra", 6144), ("mamba3", 6144)),
        *((name, 0) for name in ("pairwise", "query_attention")),
        *((name, None) for name in ("longformer", "transformer", "list_attention")),
    ],
)
def test_a_layer_carries_so_many_values(name, state_size):
    assert backbones.create(name).state_size == state_size


def test_the_sound_one_conforms():
    check_backbone(Mean)


class Crashing(Mean):
    def forward(self, tokens, layout, mask):
        return super().forward(tokens.view(2, layout.tokens, 16), layout, mask)


def test_an_encoder_that_raises_is_reported_by_rule():
    with pytest.raises(ConformanceError, match=r"batch_invariance: the encoder raised RuntimeError"):
        check_backbone(Crashing)


def test_every_rule_has_a_broken_encoder():
    assert {rule.__name__ for rule in RULES} == set(BROKEN)


@pytest.mark.parametrize("name", BROKEN)
def test_rule_catches(name):
    rule = next(rule for rule in RULES if rule.__name__ == name)
    torch.manual_seed(0)
    with pytest.raises((ConformanceError, RuntimeError)) as caught:
        rule(BROKEN[name])
    assert isinstance(caught.value, ConformanceError)
