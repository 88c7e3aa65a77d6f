"""Profile an encoder or a re-ranker:  python -m experiments.profile --gin gin/longformer.gin --gin gin/size/base.gin

Parameters, FLOPs, latency, throughput and memory on random descriptors in the landmark layout: a query and 100
candidates of 48 local descriptors, a global token and SEP, 5,050 tokens. Any re-ranker of gin/peers as well:

  --gin gin/peers/cvnet.gin --gin gin/size/base.gin --layout 1026x101 --local-dim 1024 --one-by-one
                           is CVNet as the paper measures it, unbatched on images of 512 x 512 (maps of 32 x 32 cells)

  --against transformers   the encoder beside the same computation of another package, with the same weights, in turn
                           (RWKV: as much work, not the same result, since their average looks one way);
                           limit_s is the time of the encoder's matrix products alone
  --table table.md         every row of the supplement's performance table; minutes a row on a CPU
  --lengths 1000 … 20000   time and memory against the number of tokens, with the fitted exponents, as a picture;
                           --backbones longformer mamba … draws several in one
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import numpy as np

from experiments._cli import LazyModule, add_gin_options, command_parser, count, guarded, not_negative
from experiments._profiling.side import Side, in_turn

config = LazyModule("experiments._config")
files = LazyModule("locore.utils.files")
peers = LazyModule("experiments._profiling.peers")
pictures = LazyModule("locore.report.pictures")
registry = LazyModule("backbones.registry")
supplement = LazyModule("experiments._profiling.supplement")

LANDMARKS = (50, 101)  # tokens a block, images
LOCAL_DIM, GLOBAL_DIM = 768, 2048  # DINOv2's locals and SuperGlobal's globals
PRECISIONS = ("float32", "tf32", "bfloat16")
IMAGES = 21  # where the number of images is held fixed


EXAMPLES = (
    "--gin gin/mamba.gin --gin gin/size/base.gin --against transformers --backward",
    "--gin gin/mamba.gin --lengths 1000 5000 20000 --picture lengths.png",
)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = command_parser("profile", __doc__, EXAMPLES)
    add_gin_options(parser, required=False)
    group = parser.add_argument_group("what is measured")
    group.add_argument(
        "--table", type=Path, metavar="FILE", help="every row of the supplement's performance table, as Markdown"
    )
    group.add_argument("--layout", default=LANDMARKS, type=_layout, metavar="BLOCKxIMAGES", help="default 50x101")
    group.add_argument("--local-dim", default=LOCAL_DIM, type=count, help=f"of the descriptors (default {LOCAL_DIM})")
    group.add_argument("--one-by-one", action="store_true", help="a candidate a pass, as where images differ in size")
    group.add_argument("--batch", type=count, default=1, help="lists a pass (default 1)")
    group.add_argument("--backward", action="store_true", help="with the backward pass (encoder only)")
    group.add_argument("--against", metavar="PACKAGE", help="transformers, mambapy or rwkv")
    group.add_argument("--lengths", type=count, nargs="+", metavar="TOKENS", help="sequence lengths to compare")
    group.add_argument("--backbones", nargs="+", metavar="NAME", help="of --lengths (default: the gin files' one)")
    group = parser.add_argument_group("how it is measured")
    group.add_argument(
        "--precision", choices=PRECISIONS, default="float32", help="of a re-ranker's weights and products"
    )
    group.add_argument("--passes", type=count, default=10, help="measured passes (default 10)")
    group.add_argument("--warm-up", type=not_negative, default=10, help="passes before them (default 10)")
    group = parser.add_argument_group("results")
    group.add_argument("--picture", type=Path, default=Path("lengths.png"), help="of --lengths (default: lengths.png)")
    group.add_argument("--json", action="store_true", help="print the result as one JSON value in the last line")
    options = parser.parse_args(arguments)
    return guarded(lambda: _profile(options))


def _profile(options: argparse.Namespace) -> int:
    if options.table:
        return _table(options)
    if not options.gin:
        raise ValueError("Give --gin with the files of what is profiled, or --table.")
    experiment, _ = config.read_experiment(options.gin, options.set, seed=0)
    model = experiment.model
    spec: dict[str, Any] = {
        "backbone": model.backbone,
        "size": model.size,
        "settings": config.settings_of(model.backbone) if model.listwise else {},
        "layout": options.layout,
        "batch": options.batch,
        "backward": options.backward,
        "allocator": True,
    }
    if options.one_by_one and (options.lengths or options.against):
        raise ValueError("--one-by-one goes without --against and --lengths.")
    if options.precision != "float32" and (options.lengths or options.against):
        raise ValueError("--precision is of whole re-rankers; leave it out with --against and --lengths.")
    if not model.listwise and (options.lengths or options.against):
        raise ValueError(f"--against and --lengths are of encoders; '{model.method}' has none.")
    if options.lengths:
        result = _lengths(spec, options)
    elif options.backbones:
        raise ValueError("--backbones goes with --lengths.")
    elif options.against:
        result = _against(spec, options)
    elif options.backward:
        raise ValueError("--backward goes with --against or --lengths: training has its own progress bar and log.")
    else:
        result = _cost(model.name + f" {model.size}" * model.learned, options)
    for name, value in result.items():
        if isinstance(value, dict):
            _print_lengths(name, value)
        else:
            print(f"{name:>24}  {value:,}" if isinstance(value, int) else f"{name:>24}  {value}")
    if options.json:
        print(json.dumps(result))
    return 0


def _table(options: argparse.Namespace) -> int:
    """Write the supplement's table."""
    if options.gin or options.lengths or options.against or options.backward:
        raise ValueError("--table has its own rows; leave --gin, --lengths, --against and --backward out.")
    if not os.access(options.table.absolute().parent, os.W_OK):  # reported before minutes of measuring
        raise ValueError(f"The table cannot be written to '{options.table}'; give another file.")

    def cost(case: Any) -> dict:
        measured = {"gin": list(case.gin), "set": [*options.set, *case.lines], **dict(case.measured)}
        return _cost("", argparse.Namespace(**{**vars(options), **measured}))

    page = supplement.table(cost, options.passes, options.warm_up, options.precision)
    files.write_text(options.table, page)
    print(page)
    return 0


def _cost(name: str, options: argparse.Namespace) -> dict:
    """What the supplement's benchmark reports of a re-ranker, for 100 re-ranked images."""
    spec = {
        "side": "reranker",
        "layout": options.layout,
        "batch": options.batch,
        "backward": False,
        "allocator": True,
        "gin": options.gin,
        "set": options.set,
        "widths": (GLOBAL_DIM, options.local_dim),
        "whole": False,
        "one_by_one": options.one_by_one,
        "precision": options.precision,
    }
    with Side(**spec) as side:
        in_turn([side], options.warm_up, options.passes)
        found = side.close()
    images = options.batch * (options.layout[1] - 1)
    seconds = [s * 100 / images for s in side.seconds]
    return {
        "case": f"{name}, {math.prod(options.layout)} tokens",
        "parameters": side.about["parameters"],
        **({"state_size": side.about["state_size"]} if "state_size" in side.about else {}),
        "gflops": round(found["flops"] * 100 / (options.layout[1] - 1) / 1e9, 2) if found["flops"] else None,
        "latency_s": round(median(seconds), 4),
        "latency_mean_s": round(mean(seconds), 4),
        "latency_deviation_s": round(stdev(seconds), 4) if len(seconds) > 1 else None,
        "images_a_second": round(100 / median(seconds), 1),
        "peak_mb": found["mb"],
    }


def _against(spec: dict, options: argparse.Namespace) -> dict:
    """Ours, the peer as it comes, the peer with our allocator, and the matrix products alone."""
    peers.check(options.against, spec["backbone"])
    with tempfile.TemporaryDirectory() as folder:
        outputs = {name: str(Path(folder) / f"{name}.npy") for name in ("ours", "peer")}
        specs = (
            {**spec, "side": "ours", "output": outputs["ours"]},
            {**spec, "side": options.against, "allocator": False, "output": outputs["peer"]},
            {**spec, "side": options.against},
            {**spec, "side": "products"},
        )
        with ExitStack() as stack:
            sides = [stack.enter_context(Side(**each)) for each in specs]
            in_turn(sides, options.warm_up, options.passes)
            ours_mb, peer_mb, *_ = (side.close()["mb"] for side in sides)
        ours_s, peer_s, same_s, limit_s = (median(side.seconds) for side in sides)
        difference = float(np.abs(np.load(outputs["ours"]) - np.load(outputs["peer"])).max())
    comparable = spec["backbone"] not in peers.OTHER_AVERAGE
    return {
        "case": f"{sides[0].about['name']}, {'forward and backward' if options.backward else 'forward'}, "
        f"{math.prod(options.layout)} tokens, against {options.against}",
        "ours_s": round(ours_s, 4),
        "peer_s": round(peer_s, 4),
        "speedup": round(peer_s / ours_s, 2),
        "speedup_same_allocator": round(same_s / ours_s, 2),
        "limit_s": round(limit_s, 4),
        "ours_mb": ours_mb,
        "peer_mb": peer_mb,
        "max_abs_diff": difference if comparable else None,
    }


def _lengths(spec: dict, options: argparse.Namespace) -> dict:
    """Time and memory of whole encoders against T: with a fixed block and ever more images, and the other way round."""
    if len(set(options.lengths)) < 2:
        raise ValueError("--lengths needs two lengths or more to fit an exponent.")
    folder = options.picture.parent
    if not os.access(folder, os.W_OK):  # reported before minutes of measuring
        raise ValueError(f"The picture cannot be written to '{folder}'; give another --picture.")
    chosen = {spec["backbone"]: spec["settings"]}
    if options.backbones:
        for name in options.backbones:
            registry.backbones.check(name, spec["size"])
        chosen = {name: config.settings_of(name) for name in options.backbones}
    ways: dict[str, Callable[[int], tuple[int, int]]] = {
        "more images": lambda tokens: (LANDMARKS[0], max(round(tokens / LANDMARKS[0]), 2)),
        "longer blocks": lambda tokens: (max(round(tokens / IMAGES), 2), IMAGES),
    }
    result: dict[str, Any] = {way: {} for way in ways}
    for backbone, settings in chosen.items():
        for way, layout in ways.items():
            points = []
            for tokens in sorted(set(options.lengths)):
                each = {**spec, "backbone": backbone, "settings": settings, "layout": layout(tokens)}
                with Side(**each, side="encoder") as side:
                    in_turn([side], options.warm_up, options.passes)
                    points.append((math.prod(layout(tokens)), median(side.seconds), side.close()["mb"]))
            lengths, seconds, mb = (np.array(column, dtype=float) for column in zip(*points, strict=True))
            result[way][backbone] = {
                "tokens": lengths.astype(int).tolist(),
                "seconds": [round(s, 4) for s in seconds.tolist()],
                "mb": mb.astype(int).tolist(),
                "time_exponent": _exponent(lengths, seconds),
                "memory_exponent": _exponent(lengths, np.maximum(mb, 1)),
            }
    pictures.lengths(options.picture, result)
    return {"case": f"{spec['size']}, {'forward and backward' if options.backward else 'forward'}", **result}


def _print_lengths(way: str, found: dict[str, dict]) -> None:
    print(f"\n{way + ', tokens':>24}" + "".join(f"{t:>19,}" for t in next(iter(found.values()))["tokens"]))
    for backbone, of in found.items():
        cells = (f"{s:>8.4f} s{mb:>6,} MB" for s, mb in zip(of["seconds"], of["mb"], strict=True))
        growth = f"time T^{of['time_exponent']:.2f}, memory T^{of['memory_exponent']:.2f}"
        print(f"{backbone:>24}" + "".join(f"{cell:>19}" for cell in cells) + f"   {growth}")


def _exponent(lengths: np.ndarray, values: np.ndarray) -> float:
    """p of the power law values ~ lengths^p, by least squares of the logarithms."""
    return round(float(np.polyfit(np.log(lengths), np.log(values), 1)[0]), 3)


def _layout(text: str) -> tuple[int, int]:
    try:
        block, images = (int(part) for part in text.split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not BLOCKxIMAGES, such as 50x101") from None
    if block < 3 or images < 2:
        raise argparse.ArgumentTypeError(f"'{text}': a block is 3 tokens or more, and a list 2 images or more")
    return block, images


if __name__ == "__main__":
    sys.exit(main())
