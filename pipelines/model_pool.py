"""Which model a pool of actors loads, and how much of a cluster it may use."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch

from semsam.data.shards import Split
from semsam.data.vocabularies import clean_name
from semsam.model.semantic_sam import SemanticSam
from semsam.predictor import ImageSize, Predictor, PromptStyle


@dataclass(frozen=True)
class Pool:
    """How much of the cluster to use; `num_gpus` may be a fraction."""

    num_actors: int = 2
    num_gpus: float = 0.0


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
