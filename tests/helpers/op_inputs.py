"""Random inputs of the operators, the same on every machine."""

import torch

from backbones.ops.window_attention import Window


def scan_inputs(dtype, directions, batch=2, tokens=75, channels=70, state=5):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(directions, *shape, dtype=dtype, generator=generator)

    values = (
        normal(batch, tokens, channels),
        normal(batch, tokens, channels) * 3,
        -normal(channels, state).abs(),
        normal(batch, tokens, state),
        normal(batch, tokens, state),
        normal(channels),
    )
    return [v.requires_grad_() for v in values]


def conv_inputs(dtype, directions, batch=2, tokens=75, channels=40, taps=4):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, dtype=dtype, generator=generator)

    values = (normal(batch, tokens, channels), normal(directions, channels, taps), normal(directions, channels))
    return [v.requires_grad_() for v in values]


def wkv_inputs(dtype, batch=2, tokens=45, channels=40, key_scale=1.0):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, dtype=dtype, generator=generator)

    values = (
        0.3 * normal(channels),
        normal(channels),
        key_scale * normal(batch, tokens, channels),
        normal(batch, tokens, channels),
    )
    return [v.requires_grad_() for v in values]


def window_inputs(dtype, tokens, reach, width=4):
    torch.manual_seed(0)
    inputs = [torch.randn(2, 3, tokens, width, dtype=dtype, requires_grad=True) for _ in range(3)]
    real = torch.rand(2, tokens) > 0.2
    real[:, 0] = True
    return inputs, Window.plan(real, torch.arange(tokens) % 5 == 0, reach)
