"""One click on a large image, and more clicks on the same image, against the plain way; CPU seconds of one thread.

The plain way is the same model with `grid_sample` in every deformable attention and full mask maps made after all nine
decoder layers, as in the published code.  Rounds alternate, and each figure is the best of its rounds.

    python tests/benchmarks/bench_model.py [--height 640] [--width 960] [--rounds 3] [--preset swin_tiny]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from semsam.model.pixel_decoder import ImageFeatures
from semsam.model.presets import preset
from semsam.model.semantic_sam import SemanticSam, normalise_and_pad
from semsam.model.text_encoder import TextSettings
from semsam.ops.deformable_attention import AttentionForm, DeformableAttention, sampled_attention

MORE_CLICKS = 64


def use_form(model: SemanticSam, form: AttentionForm | None) -> None:
    """Make every deformable attention take `form`; None gives each device its own."""
    for module in model.modules():
        if isinstance(module, DeformableAttention):
            module.form = form


def answer(model: SemanticSam, features: ImageFeatures, boxes: Tensor, every_layer: bool) -> Tensor:
    """The masks of clicks, made after every layer or after the last alone."""
    no_names = torch.zeros(0, model.settings.text.dim)
    is_box = torch.zeros(boxes.shape[:2], dtype=torch.bool)
    output = model.decode(features, boxes, is_box, no_names, no_names, with_generic=False, every_layer=every_layer)
    return [layer.mask_logits() for layer in output.prompts][-1]


def best_seconds(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """CPU seconds of each way, the best of alternating rounds after one to warm up."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, way in ways.items():
            start = time.process_time()
            way()
            times[name].append(time.process_time() - start)
    return {name: min(of_way[1:]) for name, of_way in times.items()}


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--height", type=int, default=640)
    parser.add_argument("--width", type=int, default=960)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--preset", default="swin_tiny")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    settings = preset(args.preset)
    # The text encoder takes no part.
    model = SemanticSam(replace(settings, text=TextSettings(kind="byte_ngrams", dim=settings.text.dim))).eval()
    image = torch.randint(0, 256, (1, 3, args.height, args.width), dtype=torch.uint8)
    click = torch.tensor([[[0.5, 0.5, 0.005, 0.005]]])
    clicks = torch.cat([torch.rand(1, MORE_CLICKS, 2), torch.full((1, MORE_CLICKS, 2), 0.005)], dim=2)

    def plain() -> Tensor:
        use_form(model, sampled_attention)
        masks = answer(model, model.encode_image(image), click, every_layer=True)
        use_form(model, None)
        return masks

    def ours() -> Tensor:
        return answer(model, model.encode_image(image), click, every_layer=False)

    difference = (plain() - ours()).abs().max().item()
    features, normalised = model.encode_image(image), normalise_and_pad(image)
    pyramid = model.backbone(normalised, None)
    seconds = best_seconds(
        {
            "plain": plain,
            "ours": ours,
            "backbone": lambda: model.backbone(normalised, None),
            "pixel decoder": lambda: model.pixel_decoder(pyramid, features.padded_size),
            "one click": lambda: answer(model, features, click, every_layer=False),
            "more clicks": lambda: answer(model, features, clicks, every_layer=False),
        },
        args.rounds,
    )
    whole = seconds["plain"]
    print(
        f"{args.preset}, {args.height} x {args.width}, one thread, best of {args.rounds}; masks differ {difference:.1e}"
    )
    print(f"one click, plain form, masks of all layers   {whole:7.2f} s   1.00")
    print(f"one click, ours                              {seconds['ours']:7.2f} s   {seconds['ours'] / whole:.2f}")
    for part in ("backbone", "pixel decoder", "one click"):
        print(f"    of that: {part:<31} {seconds[part]:7.2f} s   {seconds[part] / whole:.2f}")
    more = seconds["more clicks"]
    print(f"{MORE_CLICKS} more clicks on the encoded image          {more:7.2f} s   {more / whole:.2f}")


if __name__ == "__main__":
    main()
