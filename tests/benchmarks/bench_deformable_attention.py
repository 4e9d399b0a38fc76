"""Deformable attention in its fast form against the plain one with `grid_sample`, at the sizes of the image encoder.

On a CPU the gathering form, one image, CPU seconds of one thread; on a GPU the Triton kernel in bfloat16, with the peak
of the memory that a call takes beyond its inputs.  Rounds alternate, and each figure is the best of its rounds.

    python tests/benchmarks/bench_deformable_attention.py [--height 640] [--width 960] [--batch 1] [--rounds 3]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from semsam.model.pixel_decoder import pixel_centres
from semsam.ops.deformable_attention import AttentionForm, attention_form, map_sizes, sampled_attention
from semsam.ops.map_shapes import Shapes

HEADS, DEPTH, POINTS = 8, 32, 4
STRIDES = (8, 16, 32, 64)
REACH = 2.5  # Offsets are about so many pixels of each map long: untrained ones are 1 to 4.


def encoder_inputs(height: int, width: int, batch: int, device: torch.device) -> tuple[Shapes, list[Tensor]]:
    """Maps of an image, and values, locations and weights of a query for each of their pixels, with gradients."""
    torch.manual_seed(0)
    shapes = [(-(-height // stride), -(-width // stride)) for stride in STRIDES]
    tokens = sum(rows * columns for rows, columns in shapes)
    centres = pixel_centres(shapes, torch.device("cpu"))[None, :, None, None, None]
    offsets = REACH * torch.randn(batch, tokens, HEADS, len(shapes), POINTS, 2)
    offsets /= map_sizes(shapes, offsets)
    weights = torch.randn(batch, tokens, HEADS, len(shapes) * POINTS).softmax(-1)
    values = torch.randn(batch, tokens, HEADS, DEPTH)
    if device.type == "cuda":
        values = values.bfloat16()
    tensors = (values, centres + offsets, weights.unflatten(-1, (len(shapes), POINTS)))
    return shapes, [tensor.to(device).requires_grad_() for tensor in tensors]


def forward(form: AttentionForm, shapes: Shapes, tensors: list[Tensor]) -> None:
    with torch.no_grad():
        form(tensors[0], shapes, tensors[1], tensors[2])


def forward_and_backward(form: AttentionForm, shapes: Shapes, tensors: list[Tensor]) -> None:
    attended = form(tensors[0], shapes, tensors[1], tensors[2])
    torch.autograd.grad(attended, tensors, torch.ones_like(attended))


def seconds(work: Callable[[], None], device: torch.device) -> float:
    if device.type == "cpu":
        start = time.process_time()
        work()
        return time.process_time() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    work()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1000


def extra_megabytes(work: Callable[[], None]) -> float:
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    work()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--height", type=int, default=640)
    parser.add_argument("--width", type=int, default=960)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    machine = torch.cuda.get_device_name() if device.type == "cuda" else "CPU, one thread"
    shapes, tensors = encoder_inputs(args.height, args.width, args.batch, device)
    forms = {form.__name__: form for form in (sampled_attention, attention_form(device))}  # type: ignore[attr-defined]
    print(
        f"{machine}; {args.batch} x {args.height} x {args.width}, {tensors[0].shape[1]} tokens, best of {args.rounds}"
    )
    for work in (forward, forward_and_backward):
        ways = {name: partial(work, form, shapes, tensors) for name, form in forms.items()}
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(args.rounds + 1):
            for name, way in ways.items():
                times[name].append(seconds(way, device))
        best = {name: min(of_way[1:]) for name, of_way in times.items()}
        for name, way in ways.items():
            ratio = best[name] / best["sampled_attention"]
            memory = f"{extra_megabytes(way):8.0f} MB" if device.type == "cuda" else ""
            print(f"{work.__name__:<22}{name:<20}{best[name] * 1000:9.1f} ms   {ratio:.2f}{memory}")


if __name__ == "__main__":
    main()
