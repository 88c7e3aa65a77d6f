"""Recurrent layers that start from a vision model compute what it computes, by a slow reading of its formulas."""

import re

import pytest
import torch
from torch.nn import functional as F

from backbones import ListLayout
from locore.checkpoints.vision_models import start_from
from locore.reranking import ListwiseReranker

WIDTH, STATE, PATCHES = 32, 4, 9
LAYOUT = ListLayout(block=5, images=3)


def published_mamba(folder, video: bool, depth=3):
    """Random weights under the names of Vim (bimamba v2) or VideoMamba."""
    torch.manual_seed(0)
    inner, rank = 2 * WIDTH, WIDTH // 16
    shapes = {
        "norm.weight": (WIDTH,),
        "mixer.in_proj.weight": (2 * inner, WIDTH),
        "mixer.out_proj.weight": (WIDTH, inner),
    }
    for end, log in (("", "A_log"), ("_b", "A_b_log")):
        shapes |= {
            f"mixer.{log}": (inner, STATE),
            f"mixer.D{end}": (inner,),
            f"mixer.conv1d{end}.weight": (inner, 1, 4),
            f"mixer.conv1d{end}.bias": (inner,),
            f"mixer.x_proj{end}.weight": (rank + 2 * STATE, inner),
            f"mixer.dt_proj{end}.weight": (inner, rank),
            f"mixer.dt_proj{end}.bias": (inner,),
        }
    tensors = {
        f"layers.{n}.{name}": torch.randn(s) / max(s[-1], 2) ** 0.5 for n in range(depth) for name, s in shapes.items()
    }
    tensors |= {"patch_embed.proj.weight": torch.randn(WIDTH, 3, 1, 4, 4) if video else torch.randn(WIDTH, 3, 4, 4)}
    tensors |= {"norm_f.weight": torch.ones(WIDTH), "head.weight": torch.randn(10, WIDTH)}
    torch.save({"model": tensors}, folder / "mamba.pth")
    return tensors


def slow_mamba(t, x, video: bool):
    """Vim's mixer, a token at a time, from (T, inner) in one direction and in the other."""
    a, z = (x @ t["mixer.in_proj.weight"].T).chunk(2, dim=-1)
    total = 0
    for end, log in (("", "A_log"), ("_b", "A_b_log")):
        rows = a.flip(0) if end else a
        kernel, bias = t[f"mixer.conv1d{end}.weight"][:, 0], t[f"mixer.conv1d{end}.bias"]
        padded = F.pad(rows, (0, 0, 3, 0))
        u = F.silu(torch.stack([(padded[i : i + 4].T * kernel).sum(1) for i in range(len(rows))]) + bias)
        rank = t[f"mixer.dt_proj{end}.weight"].shape[1]
        low, B, C = (u @ t[f"mixer.x_proj{end}.weight"].T).split([rank, STATE, STATE], dim=-1)
        step = F.softplus(low @ t[f"mixer.dt_proj{end}.weight"].T + t[f"mixer.dt_proj{end}.bias"])
        A, h, out = -t[f"mixer.{log}"].exp(), torch.zeros(a.shape[1], STATE), []
        for i in range(len(u)):
            h = (step[i][:, None] * A).exp() * h + step[i][:, None] * B[i] * u[i][:, None]
            out.append(h @ C[i] + t[f"mixer.D{end}"] * u[i])
        y = torch.stack(out) * F.silu(z.flip(0) if end else z)
        total = total + (y.flip(0) if end else y)
    return (total if video else total / 2) @ t["mixer.out_proj.weight"].T


@pytest.mark.parametrize("video", [False, True])
def test_layers_of_vim_and_videomamba(tmp_path, video):
    tensors = published_mamba(tmp_path, video)
    settings = {"width": WIDTH, "depth": 2, "heads": 2, "state": STATE, "mixer_expansion": 2}
    model = ListwiseReranker("mamba", 12, 20, settings=settings).eval()
    head = model.head.weight.clone()
    start_from(model, tmp_path / "mamba.pth")
    layer = model.encoder.layers[2]  # the second one, behind query attention
    own = {name.removeprefix("layers.1."): value for name, value in tensors.items() if name.startswith("layers.1.")}
    x = torch.randn(LAYOUT.tokens, WIDTH)
    normed = F.layer_norm(x, (WIDTH,), own["norm.weight"])
    with torch.no_grad():
        found = layer(x[None], LAYOUT, None)[0]
    torch.testing.assert_close(found, x + slow_mamba(own, normed, video), atol=1e-4, rtol=1e-4)
    assert torch.equal(model.head.weight, head)


def test_layers_of_a_vision_rwkv(tmp_path):
    torch.manual_seed(0)
    shapes = {f"ln{n}.{part}": (WIDTH,) for n in (1, 2) for part in ("weight", "bias")}
    shapes |= {f"att.{name}.weight": (WIDTH, WIDTH) for name in ("key", "value", "receptance", "output")}
    shapes |= {"ffn.key.weight": (4 * WIDTH, WIDTH), "ffn.value.weight": (WIDTH, 4 * WIDTH)}
    shapes |= {"ffn.receptance.weight": (WIDTH, WIDTH), "att.spatial_decay": (WIDTH,), "att.spatial_first": (WIDTH,)}
    shapes |= {f"{part}.spatial_mix_{k}": (1, 1, WIDTH) for part, ks in (("att", "kvr"), ("ffn", "kr")) for k in ks}
    shapes |= {"gamma1": (WIDTH,), "gamma2": (WIDTH,)}
    own = {name: torch.randn(s) / s[-1] ** 0.5 for name, s in shapes.items()}
    tensors = {f"layers.{n}.{name}": value for n in range(2) for name, value in own.items()}
    tensors |= {"layers.0.ln0.weight": torch.ones(WIDTH), "layers.0.ln0.bias": torch.zeros(WIDTH)}
    whole = {f"backbone.{name}": value for name, value in tensors.items()} | {
        "backbone.pos_embed": torch.zeros(1, PATCHES, WIDTH)
    }
    torch.save({"state_dict": whole}, tmp_path / "vrwkv.pth")
    settings = {"width": WIDTH, "depth": 2, "heads": 2, "mixer_expansion": 4}
    model = ListwiseReranker("rwkv", 12, 20, settings=settings).eval()
    start_from(model, tmp_path / "vrwkv.pth")
    x = torch.randn(LAYOUT.tokens, WIDTH)

    def mixed(rows, part, k):
        half = WIDTH // 2
        shifted = torch.zeros_like(rows)
        shifted[1:, :half], shifted[:-1, half:] = rows[:-1, :half], rows[1:, half:]
        share = own[f"{part}.spatial_mix_{k}"][0, 0]
        return rows * share + shifted * (1 - share)

    rows = F.layer_norm(x, (WIDTH,), own["ln1.weight"], own["ln1.bias"])
    key, value = mixed(rows, "att", "k") @ own["att.key.weight"].T, mixed(rows, "att", "v") @ own["att.value.weight"].T
    gate = (mixed(rows, "att", "r") @ own["att.receptance.weight"].T).sigmoid()
    means = []
    for t in range(len(x)):
        logs = torch.stack(
            [
                own["att.spatial_first"] / PATCHES + key[i]
                if i == t
                else -(abs(t - i) - 1) * own["att.spatial_decay"] / len(x) + key[i]
                for i in range(len(x))
            ]
        )
        means.append((logs.softmax(0) * value).sum(0))
    expected = x + own["gamma1"] * ((gate * torch.stack(means)) @ own["att.output.weight"].T)
    rows = F.layer_norm(expected, (WIDTH,), own["ln2.weight"], own["ln2.bias"])
    inner = (mixed(rows, "ffn", "k") @ own["ffn.key.weight"].T).relu().square() @ own["ffn.value.weight"].T
    gate = (mixed(rows, "ffn", "r") @ own["ffn.receptance.weight"].T).sigmoid()
    with torch.no_grad():
        found = model.encoder.layers[2](x[None], LAYOUT, None)[0]
    torch.testing.assert_close(found, expected + own["gamma2"] * (gate * inner), atol=1e-4, rtol=1e-4)


def test_what_does_not_fit_is_reported(tmp_path):
    published_mamba(tmp_path, video=False)
    settings = {"width": WIDTH, "depth": 2, "heads": 2, "mixer_expansion": 2}
    for made, words in (
        (ListwiseReranker("mamba", 12, 20, settings={**settings, "state": 8}), r"layer 0' do not fit.*ahead\.A_log"),
        (
            ListwiseReranker("mamba", 12, 20, settings={**settings, "depth": 4, "state": STATE}),
            "has 3 recurrent layers",
        ),
        (ListwiseReranker("rwkv", 12, 20, settings=settings), "have no 'pos_embed'"),
        (ListwiseReranker("pairwise", 12, 20), "Only the backbones 'mamba' and 'rwkv'"),
    ):
        with pytest.raises(ValueError, match=words):
            start_from(made, tmp_path / "mamba.pth")
    with pytest.raises(ValueError, match=re.escape("cannot be read (No such file or directory)")):
        start_from(ListwiseReranker("mamba", 12, 20), tmp_path / "none.pth")
