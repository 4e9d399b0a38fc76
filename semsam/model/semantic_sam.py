"""The whole model: an image is encoded once; clicks, boxes and names are then answered from its features."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import safetensors.torch
import torch
import torch.nn.functional as F
import yaml
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor, nn

from semsam.config import ConfigError, config_values, parse_config, parse_yaml
from semsam.data.sealed import seal
from semsam.model.backbone import Swin
from semsam.model.generic_queries import NoisedRegions
from semsam.model.mask_decoder import Groups, MaskDecoder
from semsam.model.pixel_decoder import ImageFeatures, PixelDecoder
from semsam.model.predictions import ModelOutput
from semsam.model.presets import ModelSettings, preset
from semsam.model.prompt_encoder import FurtherTokens, PromptEncoder
from semsam.model.text_encoder import TextEncoder
from semsam.model.weight_files import FILES_FILE, Fingerprint, read_checked, read_fingerprints, read_own_tensors
from semsam.storage import Folder, NoSuchFileError

PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)
STRIDE = 32  # The image is padded to a multiple of it.
CONFIG_FILE, WEIGHTS_FILE = "config.yaml", "model.safetensors"


class SemanticSam(nn.Module):
    """Masks, boxes, scores and names at every granularity, for prompts and for everything in the image."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        self.settings = settings
        attention = (settings.hidden_dim, settings.feedforward_dim, settings.num_heads, settings.num_points)
        self.backbone = Swin(settings.backbone, settings.activation_checkpointing)
        self.pixel_decoder = PixelDecoder(
            settings.backbone.dims, *attention, settings.encoder_layers, settings.activation_checkpointing
        )
        self.prompt_encoder = PromptEncoder(settings.hidden_dim, settings.num_levels, settings.further_clicks)
        self.mask_decoder = MaskDecoder(
            *attention,
            settings.decoder_layers,
            settings.num_generic_queries,
            settings.text.dim,
            with_denoising=settings.num_denoising_queries > 0,
        )
        self.text_encoder = TextEncoder(settings.text)

    def forward(
        self,
        images: UInt8[Tensor, "b 3 h w"] | Float[Tensor, "b 3 h w"],
        prompt_boxes_cxcywh: Float[Tensor, "b n 4"],
        prompt_is_box: Bool[Tensor, "b n"],
        object_names: Float[Tensor, "x d"],
        part_names: Float[Tensor, "y d"],
        sample_keys: Int64[Tensor, " b"] | None = None,
        noised: NoisedRegions | None = None,
    ) -> ModelOutput:
        """Predictions of all layers, for training; arguments as in `encode_image` and `decode`."""
        features = self.encode_image(images, sample_keys)
        return self.decode(features, prompt_boxes_cxcywh, prompt_is_box, object_names, part_names, noised=noised)

    def encode_image(
        self,
        images: UInt8[Tensor, "b 3 h w"] | Float[Tensor, "b 3 h w"],
        sample_keys: Int64[Tensor, " b"] | None = None,
    ) -> ImageFeatures:
        """The features of RGB images of any size, with values from 0 to 255.

        `sample_keys` (see `semsam.data.randomness`) switch drop-path on; None is for inference.
        """
        normalised = normalise_and_pad(images).to(self.backbone.patches.weight.dtype)
        pyramid = self.backbone(normalised, sample_keys)
        return self.pixel_decoder(pyramid, (normalised.shape[2], normalised.shape[3]))

    def decode(
        self,
        features: ImageFeatures,
        prompt_boxes_cxcywh: Float[Tensor, "b n 4"],
        prompt_is_box: Bool[Tensor, "b n"],
        object_names: Float[Tensor, "x d"],
        part_names: Float[Tensor, "y d"],
        with_generic: bool = True,
        every_layer: bool = True,
        joint_attention: bool = False,
        noised: NoisedRegions | None = None,
        further: FurtherTokens | None = None,
    ) -> ModelOutput:
        """Predictions for `n` prompts (a click is a small box) and, if asked, for the generic queries.

        Boxes are relative to `features.padded_size`; names come from `encode_names`.  No prompt influences another,
        unless `joint_attention`: then all prompts of a call see each other, as in the released mask generator.
        `noised` regions are for training a model with `num_denoising_queries`, every step of which must have some.
        `further` clicks and masks are for models with `further_clicks`.  Raises `ValueError` for them together with
        `joint_attention`, and where the model has no such tokens.
        """
        if joint_attention and further is not None:
            raise ValueError("joint_attention: prompts that see each other cannot have clicks of their own")
        levels, num_prompts = self.settings.num_levels, prompt_is_box.shape[1]
        groups = Groups(1, num_prompts * levels) if joint_attention else Groups(num_prompts, levels)
        queries, boxes = self.prompt_encoder(prompt_is_box), prompt_boxes_cxcywh.repeat_interleave(levels, dim=1)
        if further is not None:
            num_tokens = further.valid.shape[2]
            groups = Groups(num_prompts, levels + num_tokens, num_tokens=num_tokens, valid=further.valid)
            queries = _in_groups(queries, self.prompt_encoder.further(further))
            boxes = _in_groups(boxes, further.boxes_cxcywh.to(boxes.dtype))
        return self.mask_decoder(
            features,
            queries,
            boxes,
            groups,
            object_names,
            part_names,
            with_generic,
            every_layer,
            noised,
        )

    def encode_names(self, names: Sequence[str], template: int | None = None) -> Float[Tensor, "x d"]:
        """Embeddings of unit length for `decode`; with a sentence template, or the mean over all of them."""
        if not names:
            return torch.zeros(0, self.settings.text.dim, device=self.backbone.patches.weight.device)
        return self.text_encoder(tuple(names), template)

    @staticmethod
    def untrained(name: str, seed: int = 0) -> SemanticSam:
        """A preset with random weights that depend on `seed` alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return SemanticSam(preset(name)).eval()

    def save(self, path_or_uri: str | Path, beside: Mapping[str, bytes] | None = None) -> None:
        """Write `config.yaml` (the section `model`) and `model.safetensors`, for `load`, locally or to `s3://`.

        With them go the files `beside`, by name, and `files.json`, by which a reader notices a damaged one.
        """
        folder = Folder(path_or_uri)
        config = yaml.safe_dump({"model": config_values(self.settings)}, sort_keys=False).encode()
        weights = safetensors.torch.save({name: tensor.contiguous() for name, tensor in self.state_dict().items()})
        files = {WEIGHTS_FILE: weights, CONFIG_FILE: config, **(beside or {})}
        folder.remove(FILES_FILE)  # Of what is being replaced.
        for name, data in files.items():
            folder.write(name, data)
        noted = {name: dataclasses.asdict(Fingerprint.of(data)) for name, data in files.items()}
        folder.write(FILES_FILE, seal({"files": noted}))

    @staticmethod
    def load(path_or_uri: str | Path) -> SemanticSam:
        """The model in a checkpoint folder, local or `s3://`, on the CPU, ready for inference.

        Reads the section `model` of `config.yaml` and all of `model.safetensors`.  Raises `ValueError` for missing or
        damaged files, and for missing, unexpected or misshapen weights, with their names.
        """
        folder = Folder(path_or_uri)
        config = f"{folder.path}/{CONFIG_FILE}"
        try:
            files = read_fingerprints(folder)
            sections = parse_yaml(read_checked(folder, CONFIG_FILE, files.get(CONFIG_FILE)), config)
            weights = read_own_tensors(folder, WEIGHTS_FILE, files.get(WEIGHTS_FILE))
        except NoSuchFileError as error:
            raise ValueError(f"{error}; {folder.path} is not a checkpoint") from None
        if not isinstance(sections, dict) or not isinstance(sections.get("model"), dict):
            raise ConfigError(f"{config}: no section `model`")
        model = SemanticSam(parse_config(ModelSettings, sections["model"], f"{config}, model"))
        model.load_weights(weights, f"{folder.path}/{WEIGHTS_FILE}")
        return model.eval()

    def load_weights(self, weights: Mapping[str, Tensor], where: str) -> None:
        """Take over all weights.

        Raises `ValueError`, beginning with `where`, with every name that is missing, unexpected, misshapen, of another
        type or not finite.
        """
        own = self.state_dict()
        faults = [f"missing: {name}" for name in own if name not in weights]
        faults += [f"unexpected: {name}" for name in weights if name not in own]
        faults += [
            f"{name}: {list(weights[name].shape)} instead of {list(tensor.shape)}"
            for name, tensor in own.items()
            if name in weights and weights[name].shape != tensor.shape
        ]
        for name, tensor in weights.items():
            if name in own and tensor.dtype != own[name].dtype:
                faults.append(f"{name}: {tensor.dtype} instead of {own[name].dtype}")
            elif tensor.is_floating_point() and not tensor.isfinite().all():
                faults.append(f"{name}: not finite")
        if faults:
            raise ValueError("\n  ".join([f"{where}: {len(faults)} weight(s) do not fit this model", *faults]))
        self.load_state_dict(dict(weights))


def _in_groups(queries: Float[Tensor, "b q c"], tokens: Float[Tensor, "b n t c"]) -> Float[Tensor, "b r c"]:
    """Each prompt's queries, and after them its tokens."""
    num_prompts = tokens.shape[1]
    levels = queries.shape[1] // max(num_prompts, 1)
    return torch.cat([queries.unflatten(1, (num_prompts, levels)), tokens.to(queries.dtype)], dim=2).flatten(1, 2)


def padded_size(size: int) -> int:
    """The height or width to which the model pads an image's, at the bottom and right."""
    return size + -size % STRIDE


def normalise_and_pad(
    images: UInt8[Tensor, "b 3 h w"] | Float[Tensor, "b 3 h w"],
) -> Float[Tensor, "b 3 h2 w2"]:
    """Images of zero mean, with zeros on the right and at the bottom up to a multiple of `STRIDE`, in float32."""
    # Constants and not buffers: those would be rounded with the weights when a model is cast to bfloat16.
    mean, std = (torch.tensor(values, device=images.device)[:, None, None] for values in (PIXEL_MEAN, PIXEL_STD))
    height, width = images.shape[-2:]
    return F.pad((images.float() - mean) / std, (0, padded_size(width) - width, 0, padded_size(height) - height))
