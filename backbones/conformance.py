"""Rules that every sequence encoder must pass, checked by one call.

from backbones.conformance import check_backbone
check_backbone("mamba")                      # a registered name
check_backbone(lambda: MyEncoder(width=64))  # or a function that makes one
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
from einops import rearrange
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from backbones._interleaved import QueryAttention
from backbones.encoder import ListLayout, SequenceEncoder
from backbones.registry import create

TOLERANCE = 1e-4
LAYOUTS = (ListLayout(2, 2), ListLayout(3, 8), ListLayout(5, 2), ListLayout(11, 6), ListLayout(10, 7))
RULES: list[Callable[[Callable[[], SequenceEncoder]], None]] = []


class ConformanceError(AssertionError):
    """An encoder broke a rule; the message names the rule, the numbers and where to look."""


def check_backbone(backbone: str | Callable[[], SequenceEncoder]) -> None:
    """Check an encoder against every rule of the contract.

    Args:
        backbone: a registered name, or a function without arguments that makes an encoder.

    Raises:
        ConformanceError: lists all broken rules, one a line.
    """
    make = (lambda: create(backbone)) if isinstance(backbone, str) else backbone
    make()  # a wrong name or setting is no broken rule
    broken = []
    for rule in RULES:
        torch.manual_seed(0)
        try:
            rule(make)
        except ConformanceError as error:
            broken.append(f"{rule.__name__}: {error}")
        except Exception as error:  # a stranger's encoder may raise anything
            broken.append(f"{rule.__name__}: the encoder raised {error!r}; try {rule.__name__}() alone to see where")
    if broken:
        raise ConformanceError("\n".join(broken))


def rule(function):
    """Register a function as a rule."""
    RULES.append(function)
    return function


def require(condition: bool, message: str) -> None:
    """Raise a ConformanceError unless the condition holds."""
    if not condition:
        raise ConformanceError(message)


def lists(encoder: SequenceEncoder, layout: ListLayout, batch: int = 2) -> tuple[Tensor, Tensor]:
    """Return random tokens and a mask in which every token is real."""
    return torch.randn(batch, layout.tokens, encoder.hidden_size), torch.ones(batch, layout.tokens, dtype=torch.bool)


def apart(a: Tensor, b: Tensor) -> float:
    """Return the largest difference; infinite if either is not finite."""
    difference = float((a - b).detach().abs().max())
    return difference if math.isfinite(difference) else math.inf


@rule
def shapes(make) -> None:
    """Every layout goes through, and the output is like the input."""
    encoder = make().eval()
    for layout in LAYOUTS:
        tokens, mask = lists(encoder, layout)
        output = encoder(tokens, layout, mask)
        require(
            output.shape == tokens.shape and output.dtype == tokens.dtype,
            f"{layout} gave {tuple(output.shape)} {output.dtype} for {tuple(tokens.shape)} {tokens.dtype}; look at "
            "what the last layer returns, padding included",
        )
        require(bool(output.isfinite().all()), f"{layout} gave values that are not finite; look at empty windows")


@rule
def masked_tokens(make) -> None:
    """The content of a masked token reaches no other token, before it or behind it."""
    encoder = make().eval()
    for layout in LAYOUTS[1:]:
        tokens, mask = lists(encoder, layout)
        mask[0, 1] = mask[0, layout.block + 1] = mask[1, -2] = False
        changed = torch.where(mask[:, :, None], tokens, 100.0 * torch.randn_like(tokens))
        difference = apart(encoder(tokens, layout, mask)[mask], encoder(changed, layout, mask)[mask])
        require(
            difference <= TOLERANCE,
            f"a masked token changed others by {difference:.2e} in {layout}; look for a sum, a convolution or a "
            "state that takes in tokens where mask is False",
        )


@rule
def appended_padding(make) -> None:
    """Batch padding behind the layout's tokens changes none of them."""
    encoder = make().eval()
    for layout in LAYOUTS:
        tokens, mask = lists(encoder, layout)
        padded = torch.cat([tokens, torch.randn(2, 7, encoder.hidden_size)], dim=1)
        padded_mask = torch.cat([mask, torch.zeros(2, 7, dtype=torch.bool)], dim=1)
        output = encoder(padded, layout, padded_mask)[:, : layout.tokens]
        difference = apart(output, encoder(tokens, layout, mask))
        require(
            difference <= TOLERANCE,
            f"7 tokens of padding changed the list by {difference:.2e} in {layout}; look for tokens.shape[1] "
            "where layout.tokens is meant, and for a mean over padding",
        )


@rule
def batch_invariance(make) -> None:
    """A list gives the same alone as in a batch."""
    encoder, layout = make().eval(), LAYOUTS[3]
    tokens, mask = lists(encoder, layout, batch=3)
    mask[1, 3:5] = False
    together = encoder(tokens, layout, mask)
    alone = torch.cat([encoder(tokens[i : i + 1], layout, mask[i : i + 1]) for i in range(3)])
    difference = apart(together, alone)
    require(difference <= TOLERANCE, f"alone and in a batch differ by {difference:.2e}; look at norms over the batch")


@rule
def gradients(make) -> None:
    """Every parameter gets a gradient from the candidates' tokens."""
    encoder, layout = make(), LAYOUTS[3]
    tokens, mask = lists(encoder, layout)
    output = encoder(tokens, layout, mask)[:, layout.block :]
    (output * torch.randn_like(output)).sum().backward()
    dead = [n for n, p in encoder.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)]
    require(not dead, f"no gradient reaches {', '.join(dead[:5])} ({len(dead)} in all); are they used?")


@rule
def query_reach(make) -> None:
    """The query moves the last of 200 candidates at least a tenth as much as the first."""
    encoder, layout = make().eval(), ListLayout(3, 201)
    tokens, mask = lists(encoder, layout, batch=4)
    tokens[:, -layout.block :] = tokens[:, layout.block : 2 * layout.block]
    tokens.requires_grad_()
    output = encoder(tokens, layout, mask)
    upstream = torch.randn(4, layout.block, encoder.hidden_size)
    influence = []
    for block in (slice(layout.block, 2 * layout.block), slice(layout.tokens - layout.block, layout.tokens)):
        (gradient,) = torch.autograd.grad((output[:, block] * upstream).sum(), tokens, retain_graph=True)
        influence.append(float(gradient[:, layout.query].norm()))
    first, last = influence
    require(
        last >= 0.1 * first and last > 0,
        f"gradient of the query {last:.2e} from the last candidate, {first:.2e} from the first; add query attention",
    )


@rule
def nothing_carried(make) -> None:
    """An encoder whose state_size is 0 tells a candidate nothing of the others."""
    encoder, layout = make().eval(), LAYOUTS[3]
    if encoder.state_size != 0:
        return
    tokens, mask = lists(encoder, layout)
    first = slice(layout.block, 2 * layout.block)
    changed = tokens.clone()
    changed[:, first] = torch.randn_like(changed[:, first])
    others = slice(2 * layout.block, layout.tokens)
    difference = apart(encoder(tokens, layout, mask)[:, others], encoder(changed, layout, mask)[:, others])
    require(
        difference <= TOLERANCE,
        f"state_size is 0, and one candidate changed others by {difference:.2e}; say how large the state is, or None",
    )


@rule
def query_attention_order(make) -> None:
    """Query-attention layers alone are equivariant to the order of the candidates."""
    encoder, layout = make().eval(), LAYOUTS[3]
    tokens, mask = lists(encoder, layout)
    order = torch.randperm(layout.images - 1) + 1
    moved = torch.cat([torch.zeros(1, dtype=torch.long), order])

    def reorder(x: Tensor) -> Tensor:
        blocks = rearrange(x, "b (i s) ... -> b i s ...", i=layout.images)
        return rearrange(blocks[:, moved], "b i s ... -> b (i s) ...")

    for name, layer in encoder.named_modules():
        if isinstance(layer, QueryAttention):
            output = layer(tokens, layout, mask)
            difference = apart(layer(reorder(tokens), layout, reorder(mask)), reorder(output))
            require(
                difference <= 1e-5,
                f"{name} depends on the candidates' order by {difference:.2e}; look for positions or neighbours in it",
            )
            require(
                apart(output[:, layout.query], tokens[:, layout.query]) == 0,
                f"{name} changes the query's tokens; let them pass through",
            )


@rule
def determinism(make) -> None:
    """The same input gives the same output, bit by bit."""
    encoder, layout = make().eval(), LAYOUTS[3]
    tokens, mask = lists(encoder, layout)
    require(
        torch.equal(encoder(tokens, layout, mask), encoder(tokens, layout, mask)),
        "two passes over the same input differ in eval mode; look for dropout or noise",
    )


@rule
def state_dict(make) -> None:
    """Weights saved and loaded into another instance give the same output."""
    encoder, other, layout = make().eval(), make().eval(), LAYOUTS[3]
    other.load_state_dict(copy.deepcopy(encoder.state_dict()))
    tokens, mask = lists(encoder, layout)
    difference = apart(encoder(tokens, layout, mask), other(tokens, layout, mask))
    require(difference == 0, f"a reloaded encoder differs by {difference:.2e}; is something random no buffer?")


@rule
def half_precision(make) -> None:
    """Weights and tokens in bfloat16 are accepted, and the output has it too."""
    _keeps(torch.bfloat16, make)


@rule
def double_precision(make) -> None:
    """Weights and tokens in float64 are accepted, and the output has it too."""
    _keeps(torch.float64, make)


def _keeps(dtype: torch.dtype, make) -> None:
    layout, encoder = LAYOUTS[3], make().to(dtype).eval()
    tokens, mask = lists(encoder, layout)
    output = encoder(tokens.to(dtype), layout, mask)
    require(
        output.dtype == dtype and bool(output.isfinite().all()),
        f"{dtype} weights and tokens gave {output.dtype}, finite: {bool(output.isfinite().all())}; look for a tensor "
        "made without the tokens' dtype",
    )


@rule
def autocast(make) -> None:
    """Under bfloat16 autocast the output stays finite and near the float32 one."""
    encoder, layout = make().eval(), LAYOUTS[3]
    tokens, mask = lists(encoder, layout)
    exact = encoder(tokens, layout, mask)
    with torch.autocast("cpu", torch.bfloat16):
        rough = encoder(tokens, layout, mask).float()
    error = apart(rough, exact) / float(exact.detach().std())
    require(
        error <= 0.5,
        f"bfloat16 autocast changed the output by {error:.2f} of its standard deviation; keep recurrences and "
        "normalisations in float32",
    )


class _Allocated(TorchDispatchMode):
    """Add up the bytes of every tensor that an operator makes; views and tensors changed in place do not count."""

    total = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        had = {x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        for value in tree_leaves(output):
            if isinstance(value, Tensor) and value.untyped_storage().data_ptr() not in had:
                self.total += value.untyped_storage().nbytes()
        return output


@rule
def memory(make) -> None:
    """Twice the tokens in an image make about twice the bytes, not four times; memory inside a fused kernel is not
    seen.
    """
    made = []
    for block in (256, 512):
        encoder, layout = make(), ListLayout(block, 4)
        tokens, mask = lists(encoder, layout, batch=1)
        with _Allocated() as allocated:
            encoder(tokens, layout, mask).sum().backward()
        made.append(allocated.total)
    exponent = math.log2(made[1] / made[0])
    require(exponent <= 1.5, f"bytes grow as T^{exponent:.2f}; look for a matrix of scores")
