"""The model as two ONNX graphs: one that encodes an image of any size, one that answers prompts from its features.

Written by torch's tracing exporter.  The exporter behind `torch.export` reasons about sizes with symbols, which took
over ten minutes for the windows of the smallest backbone; a trace records the arithmetic of sizes as it is.
"""

from __future__ import annotations

import copy
import importlib.util
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn

from semsam.model.pixel_decoder import NUM_MAPS, ImageFeatures
from semsam.model.semantic_sam import STRIDE, SemanticSam
from semsam.ops.deformable_attention import DeformableAttention, sampled_attention
from semsam.ops.map_shapes import Shapes

ENCODER_FILE, DECODER_FILE = "image_encoder.onnx", "prompt_decoder.onnx"
OPSET = 18
FEATURES = ("mask_features", *(f"level_{index}" for index in range(NUM_MAPS)))
PREDICTIONS = ("mask_logits", "boxes_cxcywh", "iou_predictions", "object_logits", "part_logits")


class ImageEncoder(nn.Module):
    """`SemanticSam.encode_image` with plain tensors in and out."""

    def __init__(self, model: SemanticSam) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: UInt8[Tensor, "1 3 h w"]) -> tuple[Float[Tensor, "1 c h2 w2"], ...]:
        """The tensors named in `FEATURES`."""
        features = self.model.encode_image(image)
        return (features.mask_features, *features.levels)


class PromptDecoder(nn.Module):
    """`SemanticSam.decode` for prompts alone, the last layer's answer as plain tensors."""

    def __init__(self, model: SemanticSam) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        mask_features: Float[Tensor, "1 c h w"],
        level_0: Float[Tensor, "1 c h0 w0"],
        level_1: Float[Tensor, "1 c h1 w1"],
        level_2: Float[Tensor, "1 c h2 w2"],
        level_3: Float[Tensor, "1 c h3 w3"],
        prompt_boxes_cxcywh: Float[Tensor, "1 n 4"],
        prompt_is_box: Bool[Tensor, "1 n"],
        object_names: Float[Tensor, "x d"],
        part_names: Float[Tensor, "y d"],
    ) -> tuple[Float[Tensor, "1 q h w"], ...]:
        """The tensors named in `PREDICTIONS`, for the queries q = n * levels."""
        # The padded size is for those who turn relative boxes into pixels; decoding does not look at it.
        features = ImageFeatures(mask_features, (level_0, level_1, level_2, level_3), padded_size=(0, 0))
        output = self.model.decode(
            features,
            prompt_boxes_cxcywh,
            prompt_is_box,
            object_names,
            part_names,
            with_generic=False,
            every_layer=False,
        )
        last = output.prompts[-1]
        return last.mask_logits(), last.boxes_cxcywh, last.iou_predictions, last.object_logits, last.part_logits


class TracedAttention(nn.Module):
    """A `DeformableAttention` with the same weights, in operations that ONNX has and with sizes that stay variable."""

    def __init__(self, original: DeformableAttention) -> None:
        super().__init__()
        self.original = original

    def forward(
        self,
        queries: Float[Tensor, "b q c"],
        references: Float[Tensor, "b q r"],
        tokens: Float[Tensor, "b s c"],
        shapes: Shapes,
    ) -> Float[Tensor, "b q c"]:
        """What `DeformableAttention.forward` gives."""
        own = self.original
        head_shape = (own.num_heads, own.num_maps, own.num_points)
        values = own.values(tokens).unflatten(-1, (own.num_heads, -1))
        offsets = own.offsets(queries).unflatten(-1, (*head_shape, 2))
        weights = own.weights(queries).unflatten(-1, (own.num_heads, -1)).softmax(-1)
        references = references[:, :, None, None, None]
        if references.shape[-1] == 2:
            # By products: while tracing, sizes are tensors, of which `torch.tensor` would keep today's values.
            one = offsets.new_ones(1)
            sizes = torch.stack([torch.cat([one * width, one * height]) for height, width in shapes])
            locations = references + offsets / sizes[:, None]
        else:
            locations = references[..., :2] + offsets * references[..., 2:] * (0.5 / own.num_points)
        return own.output(sampled_attention(values, shapes, locations, weights.unflatten(-1, head_shape[1:])))


def export_onnx(model: SemanticSam, folder: str | Path) -> tuple[Path, Path]:
    """Write `image_encoder.onnx` and `prompt_decoder.onnx`, in float32, and give back their paths.

    The encoder takes `image`, one RGB image [1, 3, height, width] of uint8 and of any size, and normalises and pads it
    itself.  The decoder takes the encoder's outputs, any number n > 0 of prompts (boxes relative to the padded image,
    whose sides are four times those of `mask_features`) and embedded names (`SemanticSam.encode_names`; none at all are
    fine).  Its masks are logits at a quarter of the padded image.

    Raises `ValueError` where the package onnx is missing.
    """
    if importlib.util.find_spec("onnx") is None:
        raise ValueError("writing ONNX needs the package onnx: pip install 'semsam[export]'")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    model = _traceable(model)
    encoder, decoder = ImageEncoder(model), PromptDecoder(model)
    # The smallest image decides nothing.  Whether a map is padded up to whole windows is a branch, which a trace keeps
    # as it was taken: here a window that does not divide a map pads it, right for all sizes (by nothing, if need be),
    # and one that divides it divides the maps of all sizes, for these are its multiples.
    image = torch.zeros(1, 3, STRIDE, STRIDE, dtype=torch.uint8)
    with torch.no_grad():
        features = dict(zip(FEATURES, encoder(image), strict=True))
    names = torch.zeros(1, model.settings.text.dim)  # One, so that the bias is traced as what spreads over any number.
    boxes = torch.full((1, 2, 4), 0.5)
    prompts = {
        "prompt_boxes_cxcywh": boxes,
        "prompt_is_box": torch.tensor([[False, True]]),
        "object_names": names,
        "part_names": names.clone(),
    }
    maps = {name: {2: f"{name}_height", 3: f"{name}_width"} for name in FEATURES}
    axes = {"image": {2: "height", 3: "width"}, **maps}
    _write(encoder, {"image": image}, FEATURES, axes, folder / ENCODER_FILE)
    counts: dict[str, dict[int, str]] = {name: {1: "prompts"} for name in ("prompt_boxes_cxcywh", "prompt_is_box")}
    counts |= {name: {0: name} for name in ("object_names", "part_names")} | {name: {1: "q"} for name in PREDICTIONS}
    counts["mask_logits"] |= maps["mask_features"]
    counts["object_logits"] |= {2: "object_names"}
    counts["part_logits"] |= {2: "part_names"}
    _write(decoder, {**features, **prompts}, PREDICTIONS, maps | counts, folder / DECODER_FILE)
    return folder / ENCODER_FILE, folder / DECODER_FILE


def _traceable(model: SemanticSam) -> SemanticSam:
    """A copy for inference on the CPU whose deformable attention can be traced."""
    model = copy.deepcopy(model).cpu().float().eval()
    for parent in list(model.modules()):
        for name, module in list(parent.named_children()):
            if isinstance(module, DeformableAttention):
                setattr(parent, name, TracedAttention(module))
    return model


def _write(
    module: nn.Module, inputs: Mapping[str, Tensor], outputs: tuple[str, ...], axes: Mapping[str, Any], path: Path
) -> None:
    """Trace `module` with gradients on: without them a CPU works in pieces, whose number would be traced too."""
    with warnings.catch_warnings(), torch.enable_grad():
        # About branches and constants that `export_onnx` has seen to, and about the exporter's age.
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            module,
            tuple(inputs.values()),
            str(path),
            dynamo=False,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_axes={name: named for name, named in axes.items() if name in inputs or name in outputs},
        )
