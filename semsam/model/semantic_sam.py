"""Semantic-SAM (arXiv 2307.04767): images and prompts in, masks with quality and names at every granularity out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from jaxtyping import Bool, Float, Int64, UInt8
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from semsam.config import config_values, parse_config
from semsam.model.backbone import SwinBackbone
from semsam.model.mask_decoder import MaskDecoder
from semsam.model.pixel_decoder import PixelDecoder
from semsam.model.predictions import ModelOutput
from semsam.model.presets import ModelSettings, preset
from semsam.model.prompt_encoder import PromptEncoder
from semsam.model.text_encoder import text_encoder

STRIDE = 32  # Height and width are padded to multiples of it.
PIXEL_MEAN = (123.675, 116.28, 103.53)  # RGB, 0..255
PIXEL_STD = (58.395, 57.12, 57.375)
WEIGHTS, CONFIG = "model.safetensors", "config.yaml"


@dataclass(frozen=True)
class ImageFeatures:
    """What all prompts on an image share."""

    mask_features: Float[Tensor, "b c h w"]  # At 1/4 of the padded image.
    maps: list[Float[Tensor, "b c y x"]]  # At 1/8, 1/16, 1/32, 1/64.
    padded_size: tuple[int, int]


class SemanticSam(nn.Module):
    """The whole model.  Prompts do not influence each other; neither do the images of a batch."""

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        self.settings = settings
        self.backbone = SwinBackbone(settings.backbone, settings.activation_checkpointing)
        self.pixel_decoder = PixelDecoder(settings)
        self.prompt_encoder = PromptEncoder(settings.hidden_dim, settings.num_levels)
        self.mask_decoder = MaskDecoder(settings)
        self.text_encoder = text_encoder(settings.text)
        self.register_buffer("pixel_mean", torch.tensor(PIXEL_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(PIXEL_STD).view(3, 1, 1), persistent=False)

    def forward(
        self,
        images: UInt8[Tensor, "b 3 h w"],
        prompt_boxes_cxcywh: Float[Tensor, "b n 4"],
        prompt_is_box: Bool[Tensor, "b n"],
        object_names: Float[Tensor, "x d"],
        part_names: Float[Tensor, "y d"],
        sample_keys: Int64[Tensor, " b"] | None = None,
    ) -> ModelOutput:
        """Everything that training needs: all layers of both branches.

        Prompt boxes are relative to the padded image, which a training crop (a multiple of 32) is itself.
        """
        features = self.encode_image(images, sample_keys)
        return self.decode(
            features, prompt_boxes_cxcywh, prompt_is_box, object_names, part_names, with_generic=True, every_layer=True
        )

    def encode_image(
        self, images: UInt8[Tensor, "b 3 h w"], sample_keys: Int64[Tensor, " b"] | None = None
    ) -> ImageFeatures:
        """Features of RGB images with values 0 to 255 and any size: normalised, then padded right and bottom by zeros.

        `sample_keys` decide drop-path in training (`semsam.data.randomness`).
        """
        height, width = images.shape[-2:]
        x = (images.to(self.pixel_mean.dtype) - self.pixel_mean) / self.pixel_std
        x = F.pad(x, (0, -width % STRIDE, 0, -height % STRIDE))
        mask_features, maps = self.pixel_decoder(self.backbone(x, sample_keys))
        return ImageFeatures(mask_features, maps, (x.shape[-2], x.shape[-1]))

    def decode(
        self,
        features: ImageFeatures,
        prompt_boxes_cxcywh: Float[Tensor, "b n 4"],
        prompt_is_box: Bool[Tensor, "b n"],
        object_names: Float[Tensor, "x d"],
        part_names: Float[Tensor, "y d"],
        with_generic: bool,
        every_layer: bool,
        joint_attention: bool = False,
    ) -> ModelOutput:
        """Predictions for prompts on encoded images; no prompts and no names are legal.

        `with_generic` adds the queries that need no prompt, `every_layer` the decoder's earlier layers.
        """
        content, references = self.prompt_encoder(prompt_boxes_cxcywh, prompt_is_box)
        return self.mask_decoder(
            features.maps,
            features.mask_features,
            content,
            references,
            object_names,
            part_names,
            with_generic=with_generic,
            every_layer=every_layer,
            joint_attention=joint_attention,
        )

    def encode_names(self, names: Sequence[str], template: int | None = None) -> Float[Tensor, "x d"]:
        """Unit vectors of names, in one template's sentence or (None) as the mean over all templates."""
        return self.text_encoder(names, template)

    @staticmethod
    def untrained(preset_name: str, seed: int) -> SemanticSam:
        """A model with random weights, the same for the same seed; leaves torch's own random state alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return SemanticSam(preset(preset_name))

    @staticmethod
    def load(folder: str | Path) -> SemanticSam:
        """The model of a checkpoint folder: `config.yaml`'s section `model`, and `model.safetensors`.

        Raises `ValueError`, naming the file and every tensor that is missing, unexpected or of another shape.
        """
        config, weights = Path(folder) / CONFIG, Path(folder) / WEIGHTS
        try:
            values = yaml.safe_load(config.read_text())["model"]
        except (OSError, KeyError, TypeError, yaml.YAMLError) as error:
            raise ValueError(f"{config}: no model settings to read: {error!r}") from None
        model = SemanticSam(parse_config(ModelSettings, values, where=f"{config}: model"))
        load_weights(model, weights)
        return model.eval()

    def save(self, folder: str | Path) -> None:
        """Write `config.yaml` and `model.safetensors` (fp32), which `load` reads."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / CONFIG).write_text(yaml.safe_dump({"model": config_values(self.settings)}, sort_keys=False))
        state = {name: tensor.float().contiguous() for name, tensor in self.state_dict().items()}
        save_file(state, Path(folder) / WEIGHTS)


def load_weights(model: nn.Module, path: Path) -> None:
    """Copy a safetensors file into a module.  Raises `ValueError` naming every tensor that does not fit."""
    try:
        with safe_open(path, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in sorted(file.keys())}
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from None
    own = model.state_dict()
    faults = [f"missing {name}" for name in sorted(own.keys() - state.keys())]
    faults += [f"unexpected {name}" for name in sorted(state.keys() - own.keys())]
    faults += [
        f"{name} has shape {list(state[name].shape)}, the model's is {list(own[name].shape)}"
        for name in sorted(own.keys() & state.keys())
        if own[name].shape != state[name].shape
    ]
    if faults:
        raise ValueError(f"{path}: " + "; ".join(faults))
    model.load_state_dict(state)
