"""Time the bidirectional selective scan on CUDA beside mamba-ssm's kernels, which go one way, in turn.

    python -m experiments._profiling.scan_on_cuda [selective_scan_cuda.so]

The argument is mamba-ssm's extension (state-spaces/mamba, csrc/selective_scan, float32 alone built for sm_90).
"""

import importlib.util
import sys

import torch
from triton.testing import do_bench

from backbones.ops.selective_scan import selective_scan

SHAPES = ((8, 450, 192, 8), (1, 1800, 192, 8), (1, 5050, 1536, 16), (8, 5050, 1536, 16))  # batch, T, channels, N


def inputs(batch, tokens, channels, states):
    generator = torch.Generator("cuda").manual_seed(0)

    def normal(*shape):
        return torch.randn(2, *shape, device="cuda", generator=generator)

    values = (
        normal(batch, tokens, channels),
        normal(batch, tokens, channels) - 4,
        -normal(channels, states).abs() - 0.1,
        normal(batch, tokens, states),
        normal(batch, tokens, states),
        normal(channels),
    )
    return [v.requires_grad_() for v in values]


def mamba_ssm(extension):
    class Scan(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, step, A, B, C, D):
            y, states, *_ = extension.fwd(x, step, A, B[:, None], C[:, None], D, None, None, True)
            ctx.save_for_backward(x, step, A, B, C, D, states)
            return y

        @staticmethod
        def backward(ctx, grad):
            x, step, A, B, C, D, states = ctx.saved_tensors
            last = None, None, grad.contiguous(), states, None, None, True, False
            to_x, to_step, to_A, to_B, to_C, to_D, *_ = extension.bwd(x, step, A, B[:, None], C[:, None], D, *last)
            return to_x, to_step, to_A, to_B[:, 0], to_C[:, 0], to_D

    def both_ways(x, step, A, B, C, D):
        total = 0
        for d in range(2):
            turned = (t[d].flip(1) if d else t[d] for t in (x, step, B, C))
            x_, step_, B_, C_ = (t.transpose(1, 2).contiguous() for t in turned)
            y = Scan.apply(x_, step_, A[d].contiguous(), B_, C_, D[d].contiguous()).transpose(1, 2)
            total = total + (y.flip(1) if d else y)
        return total

    return both_ways


def kernels_alone(extension, x, step, A, B, C, D):
    laid_out = [t[0].mT.contiguous() for t in (x, step, B, C)]
    x, step, B, C = laid_out
    A, D = A[0].contiguous(), D[0].contiguous()
    return lambda: [extension.fwd(x, step, A, B[:, None], C[:, None], D, None, None, True) for _ in range(2)]


def ms(function):
    return do_bench(function, warmup=5, rep=30, return_mode="median")


def main():
    extension = None
    if len(sys.argv) > 1:
        spec = importlib.util.spec_from_file_location("selective_scan_cuda", sys.argv[1])
        extension = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(extension)
    print(torch.cuda.get_device_name(), torch.__version__)
    for shape in SHAPES:
        leaves = inputs(*shape)
        plain = [v.detach() for v in leaves]
        grad = torch.randn_like(plain[0][0])

        def trained(scan, leaves=leaves, grad=grad):
            for v in leaves:
                v.grad = None
            scan(*leaves).backward(grad)

        sides = {"ours": selective_scan} | ({"mamba-ssm": mamba_ssm(extension)} if extension else {})
        for name, scan in sides.items():
            forward = ms(lambda scan=scan, plain=plain: scan(*plain))
            both = ms(lambda scan=scan, trained=trained: trained(scan))
            print(shape, name, f"forward {forward:.3f} ms, and backward {both:.3f} ms")
        if extension:
            print(shape, "mamba-ssm's kernel alone, twice", f"{ms(kernels_alone(extension, *plain)):.3f} ms")


if __name__ == "__main__":
    main()
