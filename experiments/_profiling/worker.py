"""The process of a `Side`: reads its specification from the command line, and passes from stdin."""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

import backbones.ops.selective_scan
import backbones.ops.wkv  # noqa: F401 - the operators have to be registered
from backbones import ListLayout, create
from experiments._config import read_experiment
from experiments._profiling import peers
from locore.pipeline.build import build_reranker, create_reranker, with_windows_and_stages
from locore.reranking import ListwiseReranker, Shortlist
from locore.reranking.storage import descriptor_bytes
from locore.utils.allocator import give_back_freed_memory, keep_freed_memory


def main() -> int:
    """Run the process: read its specification from the command line and passes from stdin."""
    spec = json.loads(sys.argv[1])
    if spec["allocator"]:
        keep_freed_memory()
    answers, sys.stdout = sys.stdout, sys.stderr  # what libraries print must not mix with the answers

    def say(**values) -> None:
        print(json.dumps(values), file=answers, flush=True)

    try:
        with torch.set_grad_enabled(spec["backward"]):
            if spec["side"] in ("ours", "encoder") or (spec["side"] == "reranker" and not spec["one_by_one"]):
                load_kernels, *_ = _work({**spec, "layout": (spec["layout"][0], 3)})  # so that no pass pays for them
                load_kernels()
            run, about, finish = _work(spec)
            give_back_freed_memory()  # what importing has freed must not hide what a pass takes
            _reset_peak()
            before = _memory("VmRSS")
            say(**about)
            for line in sys.stdin:
                if line.strip() == "end":
                    break
                begun = time.perf_counter()
                run()
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                say(seconds=time.perf_counter() - begun)
            peak = _memory("VmHWM") - before
            say(mb=round(peak), **finish())
    except (ValueError, MemoryError, RuntimeError, OSError) as error:
        say(error=f"{spec['side']}: {' '.join(str(error).split())}")
        return 1
    return 0


def _work(spec: dict):
    """Return a function that runs one pass, what it is, and a function that reports what only the passes could show."""
    layout = ListLayout(*spec["layout"])
    torch.manual_seed(0)
    if spec["side"] == "reranker":
        return _reranker(spec, layout)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    encoder = create(spec["backbone"], spec["size"], **spec["settings"]).train(spec["backward"]).to(device)
    tokens = torch.randn(spec["batch"], layout.tokens, encoder.hidden_size, device=device)
    tokens.requires_grad_(spec["backward"])
    _, name = peers.part(encoder)
    if spec["side"] == "encoder":
        run = peers.whole(encoder, layout)
    elif spec["side"] in ("ours", "products"):
        run = peers.ours(encoder, layout)
    else:
        run = peers.peer(spec["side"], encoder, layout)
    last: list[torch.Tensor] = []

    def once() -> None:
        output = run(tokens)
        if spec["backward"]:
            output.mean().backward()
            tokens.grad = None
        last[:] = [output.detach()]

    about = {"name": name}
    if spec["side"] == "products":
        return _products(once), about, dict

    def keep() -> dict:
        np.save(spec["output"], last[0].cpu().numpy())
        return {}

    return once, about, keep if "output" in spec else dict


def _reranker(spec: dict, layout):
    """Build a pass of a re-ranker on random descriptors, in inference."""
    experiment, _ = read_experiment(spec["gin"], spec["set"], seed=0)
    global_dim, local_dim = spec["widths"]
    made: Any
    if spec["whole"] and experiment.model.checkpoint:
        made = build_reranker(experiment, seed=0)
    else:
        positions = max(layout.tokens, experiment.model.min_positions)
        made = create_reranker(experiment, (global_dim, local_dim), positions)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    parameters = 0
    if isinstance(made, torch.nn.Module):
        precision = spec["precision"] or experiment.reranking.dtype
        if precision == "tf32":  # products of float32 in the GPU's shorter format
            torch.set_float32_matmul_precision("high")
        made.to(device, torch.bfloat16 if precision == "bfloat16" else torch.float32).eval()
        parameters = sum(p.numel() for p in made.parameters())
    reranker = with_windows_and_stages(experiment, made) if spec["whole"] else made
    local_count = layout.block - 1 - experiment.model.global_token
    if spec["whole"] and experiment.model.kept_locals:  # chosen by the model, from all
        local_count = max(local_count, (experiment.files or experiment.extractor).locals_per_image)
    shortlist = Shortlist.random(spec["batch"], layout.images - 1, local_count, local_dim, global_dim, device)
    lists = [shortlist]
    if spec["one_by_one"]:
        everyone = torch.arange(layout.images - 1, device=device).expand(spec["batch"], -1)
        lists = [shortlist.take(places) for places in everyone.split(1, dim=1)]

    def run() -> None:
        for part in lists:
            reranker.rerank(part)

    def finish() -> dict:
        # Looked at behind the passes, so that its memory is none of theirs; without weights there is little to count.
        found: dict = {"flops": flops(run) / spec["batch"] if parameters else None}
        if spec["whole"]:
            found["stored"] = descriptor_bytes(reranker, local_count, local_dim, global_dim)
        return found

    about = {"parameters": parameters}
    if isinstance(made, ListwiseReranker) and made.encoder.state_size is not None:
        about["state_size"] = made.encoder.state_size
    return run, about, finish


def flops(run) -> int:
    """Count the floating-point operations of a pass by PyTorch's counter; a multiplication and an addition are two.

    Scans are counted as Mamba's authors do, 9 for each state and direction, and a WKV as 8 for each channel and
    direction.
    """

    def scan(x, step, A, *_, **__):
        return 9 * torch.Size(x).numel() * A[-1]

    def wkv(w, u, k, *_, **__):
        return 16 * torch.Size(k).numel()

    def attention(query, key, value, *_, **__):
        return sdpa_flop_count(query, key, value)

    formulas = {
        torch.ops.locore.selective_scan: scan,
        torch.ops.locore.wkv: wkv,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention,  # not among PyTorch's own
    }
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # whole layers in one operator, which the counter does not know
    try:
        with FlopCounterMode(display=False, custom_mapping=formulas) as counter:
            run()
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    return counter.get_total_flops()


def _products(run):
    """Return a function that runs the matrix products of a pass and nothing else: the least time that it could take."""
    made: Counter = Counter()
    products = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm")

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function._schema.name in products:
                shapes = tuple((tuple(a.shape), tuple(a.stride())) for a in args if isinstance(a, torch.Tensor))
                made[function, shapes] += 1
            return function(*args, **(kwargs or {}))

    with Recorder():
        run()

    def made_again(shape: tuple[int, ...], stride: tuple[int, ...]) -> torch.Tensor:
        return torch.empty_strided(shape, stride).normal_()

    replay = [(f, [made_again(*s) for s in shapes], count) for (f, shapes), count in made.items()]

    @torch.no_grad()
    def again() -> None:
        for function, inputs, count in replay:
            for _ in range(count):
                function(*inputs)

    return again


def _memory(field: str) -> float:
    """Return memory in MB, VmRSS now or VmHWM at most: of the GPU if there is one, else of this process."""
    if torch.cuda.is_available():
        now = field == "VmRSS"
        return (torch.cuda.memory_allocated() if now else torch.cuda.max_memory_allocated()) / 2**20
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise ValueError(f"/proc/self/status has no {field}; memory is measured on Linux only.")


def _reset_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    Path(f"/proc/{os.getpid()}/clear_refs").write_text("5")


if __name__ == "__main__":
    sys.exit(main())
