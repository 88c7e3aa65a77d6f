"""Write a sequence encoder, check it and use it:  python examples/own_backbone.py

A file like this in `backbones/` is found by itself, and every command knows the name.
"""

import torch
from torch import nn

import locore
from backbones import SequenceEncoder, register
from backbones.conformance import check_backbone


@register("average", mini={"width": 192, "depth": 2}, base={"width": 768, "depth": 12})
class Average(SequenceEncoder):
    """Mix the mean of the query's tokens into every token.

    Args:
        width: D.
        depth: number of layers.
    """

    def __init__(self, width: int = 192, depth: int = 2):
        super().__init__()
        self.hidden_size = width
        self.layers = nn.ModuleList(nn.Linear(2 * width, width) for _ in range(depth))

    def forward(self, tokens, layout, mask):
        for layer in self.layers:
            known = torch.where(mask[..., None], tokens, 0)
            query = known[:, layout.query].mean(1, keepdim=True).expand_as(tokens)
            tokens = tokens + layer(torch.cat([tokens, query], dim=-1)).relu()
        return tokens


check_backbone("average")
print("The encoder keeps the contract.")

model = locore.ListwiseReranker("average", local_dim=112, global_dim=1280, max_positions=25 * 11)
shortlist = locore.Shortlist.random(batch=2, candidates=24, local_count=9, local_dim=112, global_dim=1280)
print("Order of the first list, by random weights:", model.rerank(shortlist).order[0].tolist())
