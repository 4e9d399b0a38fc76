"""Which model a pool of actors loads, and how much of a cluster it may use."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from ray.data import ActorPoolStrategy

from semsam.data.shards import Split
from semsam.data.vocabularies import clean_name
from semsam.model.semantic_sam import SemanticSam
from semsam.predictor import ImageSize, Predictor, PromptStyle


@dataclass(frozen=True)
class Pool:
    """How much of the cluster to use; `num_gpus`, of each actor, may be a fraction.

    With `max_actors` the pool grows while parts wait and the cluster has room, which an autoscaler may add, and lets
    go of actors that have nothing left to do.  Raises `ValueError`, beginning with the setting.
    """

    num_actors: int | None = None  # It begins with.  None: one where it may grow, else two.
    num_gpus: float = 0.0
    max_actors: int | None = None

    def __post_init__(self) -> None:
        if self.max_actors is not None and self.max_actors < (self.num_actors or 1):
            raise ValueError(f"max_actors: {self.max_actors} is less than num_actors, {self.num_actors}")

    def options(self, num_parts: int) -> dict[str, Any]:
        """Those of `map_batches` for so many blocks of one row each."""
        first = self.num_actors or (1 if self.max_actors else 2)
        sizes = {"min_size": min(first, num_parts), "max_size": min(self.max_actors or first, num_parts)}
        return {
            "compute": ActorPoolStrategy(**sizes),
            "num_gpus": self.num_gpus,
            "batch_size": 1,  # A block has one row; Ray Data wants it said where there are GPUs.
        }


@dataclass(frozen=True)
class ModelReference:
    """Which model an actor loads: a checkpoint folder, or random weights of a preset (a baseline, and a test)."""

    checkpoint: str | None
    preset: str
    seed: int

    def load(self, device: str) -> SemanticSam:
        if self.checkpoint is not None:
            return SemanticSam.load(self.checkpoint).to(device)
        return SemanticSam.untrained(self.preset, self.seed).to(device)


def load_predictor(model: ModelReference, image_size: ImageSize, prompt_style: PromptStyle | None = None) -> Predictor:
    """A predictor on this process's GPU, if it was given one."""
    import torch

    return Predictor(model.load("cuda" if torch.cuda.is_available() else "cpu"), image_size, prompt_style)


def use_vocabulary(predictor: Predictor, split: Split) -> None:
    """Let the predictor name things in a split's own words."""
    vocabulary = split.manifest.vocabulary
    predictor.set_vocabulary([clean_name(n) for n in vocabulary.objects], [clean_name(n) for n in vocabulary.parts])


def weights_digest(model: SemanticSam) -> str:
    """SHA-256 of a model's weights: what another model made is not taken for this one's."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
