"""What `experiments.profile` times: our encoder, and the same computation by another package with the same weights."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backbones import ListLayout, SequenceEncoder
from backbones.longformer import Longformer
from backbones.mamba import BidirectionalMamba, Mamba
from backbones.registry import suggest
from backbones.rwkv import RWKV

Pass = Callable[[Tensor], Tensor]  # tokens (B, T, D) -> (B, T, D)


def part(encoder: SequenceEncoder) -> tuple[nn.Module, str]:
    """Return what peers have as well, and its name: the whole Longformer, or one recurrent layer of the others."""
    layers: Any = getattr(encoder, "layers", [])
    if isinstance(encoder, Mamba | RWKV):
        return layers[0], f"one {type(layers[0]).__name__} layer"
    return encoder, f"{type(encoder).__name__} of {len(layers)} layers"


def ours(encoder: SequenceEncoder, layout: ListLayout) -> Pass:
    """Return one pass of `part` over whole lists."""
    module, _ = part(encoder)
    return whole(encoder, layout) if module is encoder else lambda tokens: module(tokens, layout, None)


def whole(encoder: SequenceEncoder, layout: ListLayout) -> Pass:
    """Return one pass of the whole encoder over whole lists."""
    return lambda tokens: encoder(tokens, layout, tokens.new_ones(tokens.shape[:2], dtype=torch.bool))


def peer(package: str, encoder: SequenceEncoder, layout: ListLayout) -> Pass:
    """Return the same pass by another package, with our weights (those of `OTHER_AVERAGE` are random).

    Raises:
        ValueError: the package is not installed.
    """
    try:
        return PEERS[package][type(encoder)](encoder, layout)
    except ImportError as error:
        raise ValueError(f"--against {package} needs it installed: pip install {package} ({error}).") from error


def check(package: str, backbone: str) -> None:
    """Check that a package is known and has such an encoder.

    Raises:
        ValueError: it is not, or has not.
    """
    if package not in PEERS:
        raise ValueError(f"Unknown package '{package}'{suggest(package, PEERS)}")
    encoders = [encoder.__name__.lower() for encoder in PEERS[package]]
    if backbone not in encoders:
        raise ValueError(f"'{package}' has no {backbone} to compare with; it has {', '.join(encoders)}.")


def _transformers_longformer(encoder: Longformer, layout: ListLayout) -> Pass:
    from transformers import LongformerConfig, LongformerModel

    first: Any = encoder.layers[0]
    config = LongformerConfig(
        vocab_size=3,
        hidden_size=encoder.hidden_size,
        num_hidden_layers=len(encoder.layers),
        num_attention_heads=first.attention.heads,
        intermediate_size=first.intermediate.out_features,
        attention_window=2 * encoder.reach,
        max_position_embeddings=layout.tokens + 2 * encoder.reach + 2,
        layer_norm_eps=1e-5,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    theirs = LongformerModel(config, add_pooling_layer=False).encoder
    names = {".attention.output.dense.": ".attention.output.", ".attention.output.LayerNorm.": ".attention_norm."}
    names |= {".attention.self.": ".attention.", ".intermediate.dense.": ".intermediate."}
    names |= {".output.dense.": ".output.", ".output.LayerNorm.": ".output_norm."}
    weights = encoder.state_dict()

    def own(name: str) -> str:
        name = name.replace("layer.", "layers.", 1)
        return next((name.replace(old, new) for old, new in names.items() if old in name), name)

    theirs.load_state_dict({name: weights[own(name)] for name in theirs.state_dict()})
    padding = -layout.tokens % (2 * encoder.reach)
    global_ = layout.sep()
    global_[layout.query] = True
    codes = F.pad(global_.float(), (0, padding), value=-1.0)[None] * 10_000.0  # masked, local, global as they write it

    def run(tokens: Tensor) -> Tensor:
        mask = codes.expand(len(tokens), -1)
        padded = F.pad(tokens, (0, 0, 0, padding))
        return theirs(padded, attention_mask=mask, padding_len=padding).last_hidden_state[:, : layout.tokens]

    return run


def _both_ways(layer: BidirectionalMamba, ahead: Pass, back: Pass) -> Pass:
    """Build a bidirectional layer of two causal ones: output projections are linear, so they may precede the sum."""

    def run(tokens: Tensor) -> Tensor:
        normed = layer.norm(tokens)
        return tokens + (ahead(normed) + back(normed.flip(1)).flip(1)) / 2

    return run


def _mixer_weights(layer: BidirectionalMamba, direction: nn.Module) -> dict[str, Tensor]:
    return {
        **direction.state_dict(),
        "in_proj.weight": layer.in_proj.weight.detach(),
        "out_proj.weight": layer.out_proj.weight.detach(),
    }


def _transformers_mamba(encoder: Mamba, layout: ListLayout) -> Pass:
    from transformers import MambaConfig
    from transformers.models.mamba.modeling_mamba import MambaMixer

    layer: Any = copy.deepcopy(encoder.layers[0])
    channels, state = layer.ahead.A_log.shape
    config = MambaConfig(
        hidden_size=encoder.hidden_size,
        state_size=state,
        conv_kernel=layer.ahead.conv1d.kernel_size[0],
        expand=channels // encoder.hidden_size,
        time_step_rank=layer.ahead.dt_proj.in_features,
        use_bias=False,
    )
    mixers = []
    for direction in (layer.ahead, layer.back):
        mixer = MambaMixer(config, layer_idx=0)
        mixer.load_state_dict(_mixer_weights(layer, direction))
        mixers.append(mixer)
    return _both_ways(layer, *mixers)


def _mambapy(encoder: Mamba, layout: ListLayout) -> Pass:
    from mambapy.mamba import MambaBlock, MambaConfig

    layer: Any = copy.deepcopy(encoder.layers[0])
    channels, state = layer.ahead.A_log.shape
    config = MambaConfig(
        d_model=encoder.hidden_size,
        n_layers=1,
        d_state=state,
        expand_factor=channels / encoder.hidden_size,
        d_conv=layer.ahead.conv1d.kernel_size[0],
        dt_rank=layer.ahead.dt_proj.in_features,
    )
    config.d_inner = channels
    blocks = []
    for direction in (layer.ahead, layer.back):
        block = MambaBlock(config)
        block.load_state_dict(_mixer_weights(layer, direction))
        blocks.append(block)
    return _both_ways(layer, *blocks)


def _transformers_rwkv(encoder: RWKV, layout: ListLayout) -> Pass:
    """Build a causal time mix in both directions and a channel mix: as much work as ours, but another average."""
    from transformers import RwkvConfig
    from transformers.models.rwkv.modeling_rwkv import RwkvFeedForward, RwkvSelfAttention

    layer: Any = copy.deepcopy(encoder.layers[0])
    inner = layer.channel_mix.key.out_features
    config = RwkvConfig(hidden_size=encoder.hidden_size, intermediate_size=inner, context_length=layout.tokens)
    mixer, feed_forward = RwkvSelfAttention(config), RwkvFeedForward(config)
    nn.init.zeros_(mixer.time_decay)
    nn.init.zeros_(mixer.time_first)
    for module in (mixer, feed_forward):
        for name, value in module.named_parameters():
            if "time_mix" in name:
                nn.init.uniform_(value)

    def run(tokens: Tensor) -> Tensor:
        normed = layer.time_norm(tokens)
        tokens = tokens + mixer(normed)[0] + mixer(normed.flip(1))[0].flip(1)
        return tokens + feed_forward(layer.channel_norm(tokens))[0]

    return run


def _rwkv(encoder: RWKV, layout: ListLayout) -> Pass:
    """Build the `rwkv` package's layer, from a one-layer model file in its format; both directions, list after list."""
    from rwkv.model import RWKV as Model

    width = encoder.hidden_size
    layer: Any = encoder.layers[0]
    inner = layer.channel_mix.key.out_features
    names: dict[str, tuple[int, ...]] = {
        "emb.weight": (2, width),
        "head.weight": (2, width),
        "blocks.0.ffn.key.weight": (inner, width),
    }
    names |= {"blocks.0.ffn.value.weight": (width, inner), "blocks.0.ffn.receptance.weight": (width, width)}
    names |= {f"blocks.0.att.{n}.weight": (width, width) for n in ("key", "value", "receptance", "output")}
    names |= {f"blocks.0.att.time_mix_{n}": (1, 1, width) for n in "kvr"}
    names |= {f"blocks.0.ffn.time_mix_{n}": (1, 1, width) for n in "kr"}
    names |= {f"blocks.0.att.time_{n}": (width,) for n in ("decay", "first")}
    names |= {
        f"{n}.{p}": (width,)
        for n in ("blocks.0.ln0", "blocks.0.ln1", "blocks.0.ln2", "ln_out")
        for p in ("weight", "bias")
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "layer.pth"
        torch.save({name: torch.rand(shape) / width**0.5 for name, shape in names.items()}, path)
        model = Model(model=str(path), strategy="cpu fp32")
    w = {name.removeprefix("blocks.0."): value for name, value in model.w.items() if isinstance(value, Tensor)}
    start, unquantised = torch.zeros(width), torch.empty(0)
    mixing = [w[f"att.time_{name}"] for name in ("mix_k", "mix_v", "mix_r", "decay", "first")]
    matrices = [w[f"att.{name}.weight"] for name in ("key", "value", "receptance", "output")]
    channel = [
        w[f"ffn.{name}"] for name in ("time_mix_k", "time_mix_r", "key.weight", "value.weight", "receptance.weight")
    ]

    def attention(tokens: Tensor) -> Tensor:
        norm = w["ln1.weight"], w["ln1.bias"]
        state = start, start, start, start - 1e30
        return model.att_seq(tokens, *state, *norm, *mixing, *matrices, *[unquantised] * 16)[0]

    def run(tokens: Tensor) -> Tensor:
        norm = w["ln2.weight"], w["ln2.bias"]
        outputs = []
        for list_ in tokens:
            both = attention(list_) + attention(list_.flip(0)).flip(0) - list_
            outputs.append(model.ffn_seq(both, start, *norm, *channel, *[unquantised] * 12)[0])
        return torch.stack(outputs)

    return run


OTHER_AVERAGE = ("rwkv",)  # backbones whose peers average one way only: as much work, but no sum of two is ours
PEERS: dict[str, dict[type, Callable[..., Pass]]] = {
    "transformers": {Longformer: _transformers_longformer, Mamba: _transformers_mamba, RWKV: _transformers_rwkv},
    "mambapy": {Mamba: _mambapy},
    "rwkv": {RWKV: _rwkv},
}
