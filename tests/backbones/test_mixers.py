"""Linear recurrences in chunks: the outputs of their authors' readable code, their definition, both directions."""

import pytest
import torch
from golden_files import FOLDER
from safetensors.torch import load_file
from torch.nn import functional as F

from backbones.hydra import centred_conv, quasi_separable
from backbones.linear_attention import linear_attention
from backbones.mamba3 import trapezoidal_scan
from backbones.ops._chunks import both_ways
from backbones.ops.gated_delta_rule import gated_delta_rule, gated_delta_rule_chunked, gated_delta_rule_reference
from backbones.ops.mlstm import SHUT, mlstm, mlstm_chunked, mlstm_reference
from backbones.ops.rwkv7 import rwkv7, rwkv7_chunked, rwkv7_reference
from backbones.ops.ssd import ssd, ssd_chunked, ssd_reference

TOKENS = 45


def golden(name):
    return load_file(FOLDER / f"mixer_{name}.io.safetensors")


def ssd_inputs(dtype, *lead, tokens=TOKENS, heads=3, groups=1):
    """Batches by `lead`; with directions (2, batch), else (N,)."""
    generator = torch.Generator().manual_seed(0)
    widths = ((heads, 5), (heads,), (groups, 4), (groups, 4))
    x, decay, B, C = (torch.randn(*lead, tokens, *w, dtype=dtype, generator=generator) for w in widths)
    return [v.requires_grad_() for v in (x, -decay.abs(), B, C)]


def delta_inputs(dtype, *lead, tokens=TOKENS, heads=3):
    generator = torch.Generator().manual_seed(0)
    widths = ((heads, 4), (heads, 4), (heads, 5), (heads,), (heads,))
    q, k, v, g, beta = (torch.randn(*lead, tokens, *w, dtype=dtype, generator=generator) for w in widths)
    return [x.requires_grad_() for x in (q, F.normalize(k, dim=-1), v, -g.abs(), beta.sigmoid())]


def mlstm_inputs(dtype, *lead, tokens=TOKENS, heads=3):
    generator = torch.Generator().manual_seed(0)
    widths = ((heads, 4), (heads, 4), (heads, 5), (heads,), (heads,))
    q, k, v, log_i, log_f = (torch.randn(*lead, tokens, *w, dtype=dtype, generator=generator) for w in widths)
    return [x.requires_grad_() for x in (q, k, v, 3 * log_i, F.logsigmoid(2 + log_f))]


def rwkv7_inputs(dtype, *lead, tokens=TOKENS, heads=3):
    generator = torch.Generator().manual_seed(0)
    widths = [(heads, 4)] * 3 + [(heads, 5)] + [(heads, 4)] * 2
    r, w, k, v, kappa, a = (torch.randn(*lead, tokens, *each, dtype=dtype, generator=generator) for each in widths)
    return [x.requires_grad_() for x in (r, -0.607 * w.sigmoid(), k, v, F.normalize(kappa, dim=-1), a.sigmoid())]


def outputs_alone(reference):
    """Some definitions return their last state as well."""
    return lambda *inputs: found[0] if isinstance(found := reference(*inputs), tuple) else found


MIXERS = {
    "ssd": (ssd, ssd_chunked, outputs_alone(ssd_reference), ssd_inputs),
    "gated_delta_rule": (
        gated_delta_rule,
        gated_delta_rule_chunked,
        outputs_alone(gated_delta_rule_reference),
        delta_inputs,
    ),
    "mlstm": (mlstm, mlstm_chunked, mlstm_reference, mlstm_inputs),
    "rwkv7": (rwkv7, rwkv7_chunked, outputs_alone(rwkv7_reference), rwkv7_inputs),
}
# What a token has that leaves the state as it was, by the place of the input.
NEUTRAL = {
    "ssd": {0: 0.0, 1: 0.0},
    "gated_delta_rule": {3: 0.0, 4: 0.0},
    "mlstm": {3: SHUT, 4: 0.0},
    "rwkv7": dict.fromkeys(range(1, 6), 0.0),
}
every_mixer = pytest.mark.parametrize("name", MIXERS)


def golden_inputs(name):
    """The golden inputs as our operators take them, and the outputs."""
    g = golden(name)
    if name == "ssd":
        return (g["dt"][..., None] * g["x"], g["dt"] * g["A"], g["B"], g["C"]), g["o"]
    if name == "gated_delta_rule":
        return (g["q"] / g["q"].shape[-1] ** 0.5, g["k"], g["v"], g["g"], g["beta"]), g["o"]
    g = {name: value.transpose(1, 2) for name, value in g.items() if name != "state"}
    if name == "rwkv7":
        return tuple(g[n] for n in ("r", "log_w", "k", "v", "kappa", "a")), g["o"]
    gates = g["i"][..., 0], F.logsigmoid(g["f"][..., 0])
    return (g["q"], g["k"] / g["k"].shape[-1] ** 0.5, g["v"], *gates), g["h"]


@every_mixer
def test_the_definition_is_that_of_the_published_code(name):
    inputs, expected = golden_inputs(name)
    torch.testing.assert_close(MIXERS[name][2](*inputs), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "reference"),
    [("ssd", ssd_reference), ("gated_delta_rule", gated_delta_rule_reference), ("rwkv7", rwkv7_reference)],
)
def test_the_last_state_is_that_of_the_published_code(name, reference):
    _, state = reference(*golden_inputs(name)[0])
    torch.testing.assert_close(state, golden(name)["state"], atol=1e-5, rtol=1e-5)


@every_mixer
@pytest.mark.parametrize("way", [0, 1])
def test_each_direction_is_the_published_code_on_a_flipped_list(name, way):
    """The other direction gets inputs that leave the state at zero, so that it adds nothing."""
    inputs, expected = golden_inputs(name)
    nothing = [torch.full_like(x, NEUTRAL[name].get(place, 0.0)) for place, x in enumerate(inputs)]
    turned = [x.flip(1) for x in inputs]
    pairs = zip(turned, nothing, strict=True) if way else zip(inputs, nothing, strict=True)
    stacked = [torch.stack([other, own] if way else [own, other]) for own, other in pairs]
    found = MIXERS[name][0](*stacked)
    torch.testing.assert_close(found.flip(1) if way else found, expected, atol=1e-4, rtol=1e-4)


@every_mixer
@pytest.mark.parametrize("size", [1, 7, 32, TOKENS, 200])
def test_chunks_of_any_size_are_the_definition_with_its_gradients(name, size):
    _, chunked, reference, make = MIXERS[name]
    inputs = make(torch.float64, 2)
    ours, expected = chunked(*inputs, size), reference(*inputs)
    torch.testing.assert_close(ours, expected, atol=1e-10, rtol=1e-10)
    upstream = torch.randn_like(expected)
    for a, b in zip(
        torch.autograd.grad(ours, inputs, upstream), torch.autograd.grad(expected, inputs, upstream), strict=True
    ):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-9)


@pytest.mark.slow
@every_mixer
def test_gradients_against_finite_differences(name):
    operator, _, _, make = MIXERS[name]
    assert torch.autograd.gradcheck(lambda *x: operator(*x, 4), make(torch.float64, 2, 1, tokens=9), fast_mode=True)


@every_mixer
def test_a_token_without_weight_leaves_the_state_as_it_was(name):
    operator, _, _, make = MIXERS[name]
    inputs = [x.detach() for x in make(torch.float32, 2, 2)]
    for place, value in NEUTRAL[name].items():
        inputs[place][:, :, 20:25] = value
    kept = torch.cat([torch.arange(20), torch.arange(25, TOKENS)])
    short = operator(*(x[:, :, kept] for x in inputs))
    torch.testing.assert_close(operator(*inputs)[:, kept], short, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("name", "decay"), [("ssd", 1), ("gated_delta_rule", 3), ("mlstm", 4)])
def test_strong_decay_has_finite_gradients(name, decay):
    operator, _, _, make = MIXERS[name]
    inputs = [x.detach() for x in make(torch.float32, 2, 1, tokens=90)]
    inputs[decay] *= 1000
    inputs = [x.requires_grad_() for x in inputs]
    gradients = torch.autograd.grad(operator(*inputs).square().sum(), inputs)
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_rwkv7_is_exact_at_the_strongest_decay_of_its_gate():
    inputs = rwkv7_inputs(torch.float32, 1, tokens=200)
    inputs[1] = torch.full_like(inputs[1], -0.607).requires_grad_()
    expected = rwkv7_reference(*(x.double() for x in inputs))[0].float()
    torch.testing.assert_close(rwkv7_chunked(*inputs, 32), expected, atol=1e-5, rtol=1e-4)


def test_a_list_that_is_masked_from_its_start_on_is_finite():
    q, k, v, log_i, log_f = (x.detach() for x in mlstm_inputs(torch.float32, 2, 1))
    log_i[:, :, :40], log_f[:, :, :40] = SHUT, 0
    inputs = [x.requires_grad_() for x in (q, k, v, log_i, log_f)]
    found = mlstm(*inputs)
    assert found.isfinite().all() and all(g.isfinite().all() for g in torch.autograd.grad(found.sum(), inputs))


def test_without_decay_ssd_is_a_plain_sum():
    x, decay, B, C = (v.detach() for v in ssd_inputs(torch.float64, 2))
    found = ssd_chunked(x, 0 * decay, B, C, 16)
    scores = torch.einsum("ntgs,nugs->ntu", C, B).tril()
    torch.testing.assert_close(found, torch.einsum("ntu,nuhp->nthp", scores, x), atol=1e-10, rtol=1e-10)


def test_hydra_is_a_matrix_whose_diagonal_is_empty():
    """A token reads those before it and those after it, each as the recurrence of its direction left them."""
    inputs = ssd_inputs(torch.float64, 2, 1)
    found = quasi_separable(*inputs)
    ahead, back = (ssd_reference(*(x[way].flip(1) if way else x[way] for x in inputs))[0] for way in (0, 1))
    expected = torch.zeros_like(found)
    expected[:, 1:] += ahead[:, :-1]
    expected[:, :-1] += back.flip(1)[:, 1:]
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-10)


def test_a_centred_convolution_is_pytorchs():
    x, weight, bias = torch.randn(2, 9, 4), torch.randn(4, 7), torch.randn(4)
    expected = F.conv1d(x.mT, weight[:, None], bias, padding=3, groups=4).mT
    torch.testing.assert_close(centred_conv(x, weight, bias), expected)


def mamba3_golden():
    """The golden inputs as `trapezoidal_scan` takes them, the outputs, and what the skip adds to them."""
    g = golden("mamba3")
    delta, decay, share = (g[name].transpose(1, 2) for name in ("dt", "A_dt", "trap"))
    real = torch.ones(g["x"].shape[:2], dtype=torch.bool)
    of_state = g["B"] + g["B_bias"], g["C"] + g["C_bias"]
    inputs = [g["x"], delta, decay / delta, share.sigmoid(), g["angles"], *of_state, real]
    return inputs, g["o"], g["D"][:, None] * g["x"]


def test_mamba3_is_the_published_code_in_both_directions():
    inputs, expected, skip = mamba3_golden()
    torch.testing.assert_close(trapezoidal_scan(*inputs) + skip, expected, atol=1e-4, rtol=1e-4)
    nothing = [torch.zeros_like(x) for x in inputs]
    stacked = [torch.stack([none, x.flip(1)]) for none, x in zip(nothing, inputs, strict=True)]
    found = both_ways(trapezoidal_scan, *stacked).flip(1)
    torch.testing.assert_close(found + skip, expected, atol=1e-4, rtol=1e-4)


def test_a_masked_token_is_taken_out_of_mamba3():
    """Also between two real tokens, of which the later one takes half of its step from the earlier one."""
    *inputs, real = mamba3_golden()[0]
    real[:, 0] = real[:, 10:14] = real[:, -2:] = False
    kept = real[0].nonzero().flatten()
    short = trapezoidal_scan(*(x[:, kept] for x in (*inputs, real)))
    torch.testing.assert_close(trapezoidal_scan(*inputs, real)[:, kept], short, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_gradients_of_mamba3_against_finite_differences():
    *inputs, real = mamba3_golden()[0]
    small = [x[:1, :9].double().requires_grad_() for x in inputs]
    real = real[:1, :9].clone()
    real[:, 4] = False
    assert torch.autograd.gradcheck(lambda *x: trapezoidal_scan(*x, real), small, fast_mode=True)


def test_linear_attention_is_the_published_code_and_a_quadratic_average():
    g = golden("linear_attention")
    tokens = g["q"].shape[2]
    found = linear_attention(g["q"], g["k"], g["v"], tokens)
    torch.testing.assert_close(found, g["o"], atol=1e-5, rtol=1e-5)
    weights = g["q"] @ g["k"].mT
    torch.testing.assert_close(found, (weights / weights.sum(-1, keepdim=True)) @ g["v"], atol=1e-4, rtol=1e-4)
