"""Synthetic lists to pretrain a list-wise re-ranker on: endless, and without any image.

An object is a grid of random parts, larger than what one image shows, and an image is a view of it: shifted, turned,
scaled, partly occluded, and noisy. So two views of one object may share no part, while a third one links them. Wrong
candidates share parts with the query's object (look-alikes), or a style, which all images of a group of objects have,
or background that stands in many images. How much of each is drawn anew for every list.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from locore.descriptors.table import Descriptors
from locore.reranking.reranker import Shortlist

WIDTH = 128  # of the descriptors, global and local
SIDES = (3, 7)  # cells of an image along a side: 9 to 49 local descriptors
CANDIDATES = (8, 32)
COMMON = 4  # backgrounds that many images of a list have
PUBLIC = 3.0  # length at most of what all global descriptors have in common; that of an image's own part is about 1


def draw_lists(count: int, random: torch.Generator) -> tuple[Shortlist, Tensor]:
    """Draw lists with equally many candidates and local descriptors, both drawn anew each time.

    Args:
        count: B, number of lists.
        random: source of randomness.

    Returns:
        The lists, candidates in random order, and (B, K) long, 1 = a view of the query's object.
    """
    side, candidates = _whole(*SIDES, random), _whole(*CANDIDATES, random)
    images = 1 + candidates
    objects = _objects(count, candidates, side, random)
    shown = _shown(count, candidates, objects.shape[1], random)
    size = objects.shape[-1]
    chosen = objects[torch.arange(count)[:, None], shown].flatten(0, 1)
    cells = F.grid_sample(chosen, _views(len(chosen), side, size, random), align_corners=False)
    cells = cells.unflatten(0, (count, images)).flatten(3).transpose(2, 3)  # (B, 1 + K, L, D)
    cells = torch.where(_occluded(count, images, side, random), _backgrounds(cells, random), cells)
    cells = cells + _styles(count, shown, random)[:, :, None]
    cells = cells + _between(0.2, 1.4, (count, 1, 1, 1), random) * torch.randn(cells.shape, generator=random)
    spectrum = _spectrum(random)
    global_ = F.normalize(cells.mean(2) * side**0.5 * spectrum, dim=-1)
    public = F.normalize(torch.randn(count, 1, WIDTH, generator=random), dim=-1)
    global_ = F.normalize(global_ + _between(0, PUBLIC, (count, 1, 1), random) * public, dim=-1)
    described = _described(F.normalize(cells * spectrum, dim=-1), global_, side)
    similarities = torch.einsum("bd,bkd->bk", global_[:, 0], global_[:, 1:])
    labels = (shown[:, 1:] == shown[:, :1]).long()
    return Shortlist(similarities, described[:, 0], described[:, 1:]), labels


def _whole(low: int, high: int, random: torch.Generator) -> int:
    """Draw a whole number, both ends included."""
    return int(torch.randint(low, high + 1, (), generator=random))


def _between(low: float, high: float, shape: tuple[int, ...], random: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=random)


def _objects(count: int, candidates: int, side: int, random: torch.Generator) -> Tensor:
    """Draw (B, O, D, H, H) objects, the query's first; look-alikes have a share of its parts at the same places."""
    number, size = _whole(4, candidates, random), side + _whole(1, side, random)
    objects = torch.randn(count, number, WIDTH, size, size, generator=random)
    alike = torch.rand(count, number, generator=random) < _between(0, 0.7, (count, 1), random)
    share = _between(0.1, 0.7, (count, number), random) * alike
    copied = torch.rand(count, number, size, size, generator=random) < share[..., None, None]
    return torch.where(copied[:, :, None], objects[:, :1], objects)


def _shown(count: int, candidates: int, objects: int, random: torch.Generator) -> Tensor:
    """Draw (B, 1 + K) the object of each image: the query's is 0, as are those of 1 to K / 2 candidates."""
    others = torch.randint(1, objects, (count, candidates), generator=random)
    right = torch.randint(1, candidates // 2 + 1, (count, 1), generator=random)
    places = torch.rand(count, candidates, generator=random).argsort(1)
    return F.pad(torch.where(places < right, 0, others), (1, 0))


def _views(count: int, side: int, size: int, random: torch.Generator) -> Tensor:
    """Draw (N, side, side, 2) the places of the cells of views on their objects."""
    zoom = _between(0.8, 1.2, (count,), random) * side / size
    turn = _between(-0.4, 0.4, (count,), random)
    shift = (1 - zoom).clamp(min=0)[:, None] * _between(-1, 1, (count, 2), random)
    turned = torch.stack([turn.cos(), -turn.sin(), turn.sin(), turn.cos()], dim=1).unflatten(1, (2, 2))
    affine = torch.cat([zoom[:, None, None] * turned, shift[..., None]], dim=2)
    return F.affine_grid(affine, [count, 1, side, side], align_corners=False)


def _occluded(count: int, images: int, side: int, random: torch.Generator) -> Tensor:
    """Draw (B, 1 + K, L, 1) bool, patches of cells that show something else."""
    field = torch.rand(count * images, 1, 3, 3, generator=random)
    field = F.interpolate(field, (side, side), mode="bilinear").unflatten(0, (count, images)).flatten(3)
    return (field < _between(0, 0.6, (count, images, 1, 1), random)).transpose(2, 3)


def _backgrounds(cells: Tensor, random: torch.Generator) -> Tensor:
    """Draw (B, 1 + K, L, D) what covers objects: an image's own, or one of a few that its whole list has."""
    own = torch.randn(cells.shape, generator=random)
    common = torch.randn(len(cells), COMMON, cells.shape[-1], generator=random)
    which = torch.randint(COMMON, cells.shape[:3], generator=random)
    seen = torch.rand(cells.shape[:3], generator=random) < _between(0, 0.8, (len(cells), 1, 1), random)
    rows = torch.arange(len(cells))[:, None, None]
    return torch.where(seen[..., None], common[rows, which], own)


def _styles(count: int, shown: Tensor, random: torch.Generator) -> Tensor:
    """Draw (B, 1 + K, D) what all cells of an image have: the style of its object's group, and its own light."""
    groups = 3
    of_group = torch.randn(count, groups, WIDTH, generator=random)
    light = torch.randn(*shown.shape, WIDTH, generator=random)
    rows = torch.arange(count)[:, None]
    strength = _between(0, 1.0, (count, 1, 1), random)
    return strength * of_group[rows, shown % groups] + _between(0, 0.7, (count, 1, 1), random) * light


def _spectrum(random: torch.Generator) -> Tensor:
    """Draw (D,) the spread of a descriptor's directions, from all alike to some that dominate, mean square 1."""
    fall = float(_between(0, 0.6, (), random))
    spread = torch.arange(1, WIDTH + 1).float() ** -fall
    return spread * math.sqrt(WIDTH) / spread.norm()


def _described(local: Tensor, global_: Tensor, side: int) -> Descriptors:
    lead = local.shape[:3]
    centres = (torch.arange(side) + 0.5) / side
    places = torch.cartesian_prod(centres, centres).flip(1)
    return Descriptors(
        global_descriptor=global_,
        local=local,
        position=places.expand(*lead, 2),
        scale=torch.zeros(lead, dtype=torch.long),
        mask=torch.ones(lead, dtype=torch.bool),
        weight=torch.ones(lead),
    )
