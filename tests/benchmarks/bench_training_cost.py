"""What the trainings in jobs/configs would cost on GPUs: counted from one step of each model, measured on no GPU.

The forward and backward pass of one image runs on fake tensors (shapes and types without numbers), at full size, under
bf16 autocast, with what a GPU takes for attention.  Of every operation are counted its FLOPs (matrix products and
convolutions, by torch's FlopCounterMode), the bytes that it reads and writes, and what is kept for the backward pass.
Deformable attention and the criterion are added by formula (`look_up_bytes`, `CriterionCost`).  A batch then takes

    images x (bf16 FLOPs / bf16 peak + fp32 FLOPs / fp32 peak + bytes / bandwidth) / SHARE

with nothing overlapping, or as long as it takes to launch its kernels, and a step exchanges gradients and weights too.
For Swin-B at 224 pixels, alone on an A100, a SHARE of 0.3 means 284 images/s; its authors report 264 to 282 without
fused kernels (microsoft/Swin-Transformer, pull request 234, which does not name the size).  `click_rounds` count as 1.

    python tests/benchmarks/bench_training_cost.py [<train config> ...]
"""

from __future__ import annotations

import argparse
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from jobs.train import TrainJob
from semsam.config import load_config
from semsam.losses.criterion import _distinct_tensors
from semsam.model.generic_queries import NoisedRegions
from semsam.model.presets import ModelSettings
from semsam.model.semantic_sam import SemanticSam
from semsam.ops.deformable_attention import DeformableAttention

TRAININGS = [f"{name}.yaml" for name in ("sa1b_swin_tiny", "reproduce_sam", "seven_swin_tiny", "seven_swin_large")]
CONFIGS = Path(__file__).parents[2] / "jobs" / "configs"
SHARE = 0.3
LAUNCH_S = 15e-6  # Of a kernel, by Python and autograd.
NAMES = (754, 243)  # Objects and parts of all seven datasets; none where SA-1B is alone.
REGIONS = 100  # Of an image, for generic queries: more than most have.
MASKS_UNDER_CLICK = 5.7  # Likewise: 342 pairs of 60 clicks among 100 nested masks.
BUCKET_BYTES = 4 * 500_000_000  # DeepSpeed's, for gradients on their way, at its default.
GIB, NUM_GPUS = 2**30, (8, 64)


@dataclass(frozen=True)
class Gpu:
    """Dense peaks per second, as their maker states them."""

    name: str
    bf16: float
    fp32: float
    bandwidth: float
    links: tuple[float, float]  # Bytes per second of each GPU: in a machine of eight; beyond it, 200 Gbit/s assumed.


GPUS = (
    Gpu("H100 SXM", 989e12, 67e12, 3.35e12, (150e9, 25e9)),
    Gpu("A100 80GB", 312e12, 19.5e12, 2.04e12, (100e9, 25e9)),
)


class Traffic(TorchDispatchMode):
    """Bytes that operations read and write, each in a kernel of its own, and how many kernels there are."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.kernels = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.namespace == "prim":
            return out
        read, made = ([t for t in tree_leaves(tree) if isinstance(t, Tensor)] for tree in ((args, kwargs), out))
        known = {t.untyped_storage()._cdata for t in read}
        written = [t for t in made if func._schema.is_mutable or t.untyped_storage()._cdata not in known]
        if written and "empty" not in func.__name__:
            self.kernels += 1
            self.bytes += sum(min(t.numel() * t.element_size(), t.untyped_storage().nbytes()) for t in read + written)
        return out


class Attention(torch.autograd.Function):
    """Stands in for deformable attention: keeps what the GPU's kernel keeps, and adds what it looks up to `traffic`."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, locations: Tensor, weights: Tensor, traffic: Traffic) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(values, locations, weights)
        ctx.traffic = traffic
        traffic.bytes += look_up_bytes(values, weights, values.element_size())
        return values.new_empty(locations.shape[0], locations.shape[1], values.shape[2] * values.shape[3])

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor | None, ...]:
        values, _, weights = tensors = ctx.saved_tensors
        # The values once more, and their gradients read and written in float32.
        ctx.traffic.bytes += look_up_bytes(values, weights, values.element_size() + 8)
        return *(torch.empty_like(tensor) for tensor in tensors), None


def look_up_bytes(values: Tensor, weights: Tensor, each: int) -> int:
    """Four neighbours of every sample, in all channels of its head: as if no cache held any of them."""
    return weights.numel() * 4 * values.shape[-1] * each


@dataclass(frozen=True)
class CriterionCost:
    """Its cost for one image, by formula; `pairs` are counted once for each layer they are compared in."""

    flops: float  # In float32: a pair's map is a product of its embedding and all pixels', and so are two gradients.
    bytes: float
    kept: float  # Position, probability and truth of every point.

    @staticmethod
    def of(job: TrainJob, settings: ModelSettings) -> CriterionCost:
        prompts, layers = job.data.sample.prompts, settings.decoder_layers
        clicks = prompts.num_prompts * (1 - prompts.box_share)
        pairs = (clicks * MASKS_UNDER_CLICK + prompts.num_prompts * prompts.box_share) * layers
        if job.criterion.click_matching == "many_to_one":
            pairs = prompts.num_prompts * settings.num_levels * layers  # All levels, to find the best of each.
        if set(job.data.datasets()) != {"sa1b"}:
            pairs += REGIONS * (layers + 1) + settings.num_denoising_queries * layers
        pixels, points = (job.data.sample.augmentation.crop_size // 4) ** 2, job.criterion.num_points
        # A map is written, read, and its gradient written and read twice.  A candidate's position and value, its four
        # neighbours and the selection are 52 bytes; a point's labels, truth, losses and gradients 260.
        bytes_of_pair = 5 * 4 * pixels + points * (job.criterion.oversample * 52 + 260)
        return CriterionCost(3 * 2 * pairs * settings.hidden_dim * pixels, pairs * bytes_of_pair, pairs * points * 16)


@dataclass(frozen=True)
class Step:
    """One image of a training; `kept` for the backward pass includes the criterion's part."""

    flops: float
    bytes: float
    kernels: int
    kept: float
    criterion: CriterionCost

    def seconds(self, gpu: Gpu) -> float:
        moved = (self.bytes + self.criterion.bytes) / gpu.bandwidth
        return (self.flops / gpu.bf16 + self.criterion.flops / gpu.fp32 + moved) / SHARE


def count(job: TrainJob, settings: ModelSettings) -> Step:
    """What one image of the job costs a model of these settings."""
    with torch.device("meta"):
        model = SemanticSam(settings).train()
    traffic, flops = Traffic(), FlopCounterMode(display=False)
    with ExitStack() as stack:
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(patch.object(F, "scaled_dot_product_attention", _fused_attention))
        model.to_empty(device="cpu")
        for module in model.modules():
            if isinstance(module, DeformableAttention):
                module.form = lambda values, _, *places: Attention.apply(values, *places, traffic)
            if isinstance(module, nn.LayerNorm | nn.GroupNorm):  # As a GPU's autocast has it.
                module.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),))
        storages = {p.untyped_storage()._cdata: p.untyped_storage() for p in model.parameters()}
        num_others = len(storages)

        def keep(tensor: Tensor) -> Tensor:
            storages.setdefault(tensor.untyped_storage()._cdata, tensor.untyped_storage())
            return tensor

        for mode in (flops, traffic, torch.autocast("cpu", torch.bfloat16)):
            stack.enter_context(mode)
        with saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = _loss(model, job)
        loss.backward()
    criterion = CriterionCost.of(job, settings)
    kept = sum(storage.nbytes() for storage in list(storages.values())[num_others:]) + criterion.kept
    return Step(flops.get_total_flops(), traffic.bytes, traffic.kernels, kept, criterion)


def _loss(model: SemanticSam, job: TrainJob) -> Tensor:
    settings, size = model.settings, job.data.sample.augmentation.crop_size
    num_prompts, num_noised = job.data.sample.prompts.num_prompts, settings.num_denoising_queries
    objects, parts = (torch.zeros(0 if set(job.data.datasets()) == {"sa1b"} else n, settings.text.dim) for n in NAMES)
    nobody = torch.zeros(1, num_noised, dtype=torch.int64)
    noised = NoisedRegions(torch.zeros(1, num_noised, 4), nobody, nobody) if num_noised else None
    images = torch.zeros(1, 3, size, size, dtype=torch.uint8)
    boxes, is_box = torch.zeros(1, num_prompts, 4), torch.zeros(1, num_prompts, dtype=torch.bool)
    output = model(images, boxes, is_box, objects, parts, torch.zeros(1, dtype=torch.int64), noised)
    tensors = _distinct_tensors([*output.prompts, *output.generic, output.proposals, *output.denoising])
    return torch.stack([tensor.float().sum() for tensor in tensors]).sum()


def _fused_attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    """What `F.scaled_dot_product_attention` is on a GPU where there is a mask."""
    if attn_mask is not None:
        attn_mask = attn_mask.to(q.dtype).expand(*q.shape[:-1], k.shape[2])
    return torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, attn_mask, torch.is_grad_enabled())[0]


def hours(job: TrainJob, step: Step, trained: int, gpu: Gpu, num_gpus: int, batches: int) -> float:
    """Of the whole training; each of a step's `batches` sends its gradients, and each update the weights."""
    images = job.training.global_batch / num_gpus / batches
    computing = batches * max(images * step.seconds(gpu), step.kernels * LAUNCH_S)
    return job.training.steps * (computing + 4 * trained * (batches + 1) / gpu.links[num_gpus > 8]) / 3600


def report(name: str, job: TrainJob) -> None:
    """Print all figures of a training."""
    settings = job.model.own_settings()
    steps = {on: count(job, replace(settings, activation_checkpointing=on)) for on in (False, True)}
    step = steps[settings.activation_checkpointing]
    criterion, kept = step.criterion, " and ".join(f"{one.kept / GIB:.1f}" for one in steps.values())
    with torch.device("meta"):
        model = SemanticSam(settings)
    frozen = 0 if job.training.text == "trained" else sum(p.numel() for p in model.text_encoder.parameters())
    trained = sum(p.numel() for p in model.parameters()) - frozen
    print(f"{name}: {trained / 1e6:.1f} M weights trained, {frozen / 1e6:.1f} M frozen")
    print(f"  an image: {step.flops / 1e12:.2f} TFLOP in bf16, {step.bytes / 1e9:.0f} GB moved, {step.kernels} kernels")
    print(f"    criterion: {criterion.flops / 1e12:.2f} TFLOP in fp32, {criterion.bytes / 1e9:.0f} GB moved")
    print(f"    kept for the backward pass: {kept} GiB without and with activation checkpointing")
    for gpu in GPUS:
        seconds = step.seconds(gpu)
        print(f"  {gpu.name}: {seconds:.3f} s an image, {step.flops / gpu.bf16 / seconds:.1%} of the bf16 peak")
    for n in NUM_GPUS:
        # In float32: all weights, and a share of their master copy, gradients, two moments and the average.
        state = 4 * (trained + frozen + (4 if job.training.ema_decay is None else 5) * trained / n)
        batches = max(1, job.training.accumulation * job.run.num_workers // n)
        images = -(-job.training.global_batch // (n * batches))
        memory = f"{state / GIB:.2f} GiB of states, {(state + BUCKET_BYTES + images * step.kept) / GIB:.0f} in all"
        spent = ", ".join(f"{hours(job, step, trained, gpu, n, batches):.0f} h on {gpu.name}" for gpu in GPUS)
        print(f"  {n} GPUs: {spent}; {images} images at once, {memory} on each")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="*", default=[str(CONFIGS / name) for name in TRAININGS])
    started = time.perf_counter()
    for config in parser.parse_args().configs:
        report(Path(config).stem, load_config(TrainJob, config))
    print(f"counted in {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
