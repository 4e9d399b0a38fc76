"""One training step as one module, so that whoever shards the parameters sees every use of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64, UInt8
from torch import Tensor, nn

from semsam.data.randomness import generator, random_key
from semsam.data.sample import Batch
from semsam.data.vocabularies import TEMPLATES, JointVocabulary
from semsam.losses.criterion import Criterion
from semsam.losses.denoising import Noise
from semsam.losses.targets import Targets, count_targets
from semsam.model.predictions import ModelOutput, join_queries
from semsam.model.prompt_encoder import FurtherTokens
from semsam.model.semantic_sam import SemanticSam, padded_size
from semsam.training.engine import Engine
from semsam.training.next_clicks import corrections, in_rounds, next_clicks
from semsam.training.partitions import Partition

Precision = Literal["fp32", "bf16"]
_PREFIX = "model."  # Of the model's parameters in a `TrainingStep`.


@dataclass(frozen=True)
class DeviceBatch:
    """A batch where the model is."""

    step: int
    images: UInt8[Tensor, "b 3 h w"]
    prompt_boxes_cxcywh: Float[Tensor, "b n 4"]  # Relative to the padded image.
    prompt_is_box: Bool[Tensor, "b n"]
    sample_keys: Int64[Tensor, " b"]
    targets: Targets

    @staticmethod
    def of(
        batch: Batch, vocabulary: JointVocabulary, seed: int, device: torch.device, noise: Noise | None = None
    ) -> DeviceBatch:
        """Move a batch to `device`; `noise` is for denoising queries."""
        height, width = batch.images.shape[2:]
        kept = np.array([width / padded_size(width), height / padded_size(height)] * 2, np.float32)
        keys = np.array([random_key(seed, int(index), "drop_path") for index in batch.indices], np.int64)
        return DeviceBatch(
            step=batch.step,
            # Sharing the reader's memory keeps it from being used again before the copy has been read.
            images=torch.from_numpy(batch.images).to(device, non_blocking=True),
            prompt_boxes_cxcywh=torch.from_numpy(batch.prompt_boxes_cxcywh * kept).to(device),
            prompt_is_box=torch.from_numpy(batch.prompt_is_box).to(device),
            sample_keys=torch.from_numpy(keys).to(device),
            targets=Targets.of(batch, vocabulary, device, noise),
        )


class TrainingStep(nn.Module):
    """The loss of a batch, from pixels and names.

    All randomness is keyed by the seed and the samples' places in the run, and the sentence that names are put into by
    the seed and the step: workers, processes and restarts change nothing.  With `precision` bf16 the model runs under
    autocast.
    """

    def __init__(
        self,
        model: SemanticSam,
        criterion: Criterion,
        vocabulary: JointVocabulary,
        seed: int,
        precision: Precision = "fp32",
        click_rounds: int = 1,
    ) -> None:
        super().__init__()
        self.model = model
        self.criterion = criterion
        self.vocabulary = vocabulary
        self.seed = seed
        self.precision = precision
        self.click_rounds = click_rounds
        self.name_bank: Float[Tensor, "templates x d"] | None = None
        num_noised = model.settings.num_denoising_queries
        self.noise = Noise(num_noised, criterion.settings.noise, seed) if num_noised else None

    def embed_frozen_names(self) -> None:
        """Embed all names in every template once for the run, if the text encoder is frozen.

        Call it when the weights are there, on the device, and before anybody shards them.
        """
        if any(parameter.requires_grad for parameter in self.model.text_encoder.parameters()):
            return
        with torch.no_grad():
            # Plain and no buffer: every worker has its own, and no checkpoint needs it.
            self.name_bank = torch.stack([self._embed_names(template) for template in range(len(TEMPLATES))])

    def count_targets(self, batch: Batch) -> Float64[np.ndarray, " normalizers"]:
        """What a batch adds to the `normalizers` of `forward`."""
        many_to_one = self.criterion.settings.click_matching == "many_to_one"
        return count_targets(in_rounds(batch, self.click_rounds), many_to_one, self.noise)

    def to_device(self, batch: Batch, device: torch.device) -> DeviceBatch:
        """A batch as `forward` takes it."""
        return DeviceBatch.of(in_rounds(batch, self.click_rounds), self.vocabulary, self.seed, device, self.noise)

    def forward(
        self, batch: DeviceBatch, normalizers: Float[Tensor, " normalizers"]
    ) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
        """This batch's part of the global batch's loss, and its terms: summed over all workers they are the loss."""
        # Here and not around the engine, because DeepSpeed switches off an autocast that it finds.
        with torch.autocast(batch.images.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            output = self._predict(batch)
            found = self.criterion(output, batch.targets, normalizers, self.seed)
        return found.loss, found.terms

    def _predict(self, batch: DeviceBatch) -> ModelOutput:
        template = int(generator(self.seed, batch.step, "templates").integers(len(TEMPLATES)))
        names = self._embed_names(template) if self.name_bank is None else self.name_bank[template]
        object_names, part_names = names.split([len(self.vocabulary.objects), len(self.vocabulary.parts)])
        features = self.model.encode_image(batch.images, batch.sample_keys)
        num_prompts = batch.prompt_is_box.shape[1] // self.click_rounds
        boxes, is_box = batch.prompt_boxes_cxcywh[:, :num_prompts], batch.prompt_is_box[:, :num_prompts]
        output = self.model.decode(features, boxes, is_box, object_names, part_names, noised=batch.targets.noised)
        rounds = [output.prompts]
        clicks: FurtherTokens | None = None
        further: FurtherTokens | None = None
        for number in range(1, self.click_rounds):
            last = rounds[-1][-1]
            if self.model.settings.further_clicks:
                click, mask = corrections(last, num_prompts, batch.targets, self.seed, number)
                clicks = click if clicks is None else clicks.joined(click)
                further = clicks.joined(mask)
            else:
                boxes, is_box = next_clicks(last, boxes, is_box, batch.targets, self.seed, number)
            again = self.model.decode(
                features, boxes, is_box, object_names, part_names, with_generic=False, further=further
            )
            rounds.append(again.prompts)
        return replace(output, prompts=[join_queries(layers) for layers in zip(*rounds, strict=True)])

    def _embed_names(self, template: int) -> Float[Tensor, "x d"]:
        # One call for both heads, so that the text encoder runs whatever the datasets name.
        return self.model.encode_names((*self.vocabulary.objects, *self.vocabulary.parts), template)


def model_partitions(engine: Engine) -> list[Partition]:
    """The partitions of an engine around a `TrainingStep`, by the names that the model's weights have."""
    return [replace(one, name=one.name.removeprefix(_PREFIX)) for one in engine.partitions()]
