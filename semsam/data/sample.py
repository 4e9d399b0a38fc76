"""What travels from a shard to the loss: a decoded `Sample`, and a `Batch` of them.  Plain numpy, no torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int32, Int64, UInt8

from semsam.data.atoms import AtomMap

NOT_ANNOTATED = -1  # In the integer arrays below; `schema` has null there.


@dataclass(frozen=True)
class Regions:
    """The regions of one sample that training uses, as columns; `m` of them.

    `boxes_cxcywh` are relative to the crop's width and height; they enclose the part of the region that is inside the
    crop.  Region `j` is column `j` of the atom map's table; a box-only region (`has_mask` false) has an empty column.
    """

    boxes_cxcywh: Float[np.ndarray, "m 4"]
    has_mask: Bool[np.ndarray, " m"]
    object_category: Int32[np.ndarray, " m"]  # In the dataset's own vocabulary; NOT_ANNOTATED where null.
    part_category: Int32[np.ndarray, " m"]
    parent: Int32[np.ndarray, " m"]  # Index of another region here, or -1.
    is_thing: Bool[np.ndarray, " m"]

    def __len__(self) -> int:
        return len(self.has_mask)


@dataclass(frozen=True)
class Prompts:
    """The `n` prompts (a fixed number for a run) of one sample, with the regions that each is matched to.

    A click is a small box around its pixel, as the model takes it: ((x - 3, y - 3, x + 3, y + 3) in the crop's pixels.
    """

    boxes_cxcywh: Float[np.ndarray, "n 4"]  # Relative to the crop.
    is_box: Bool[np.ndarray, " n"]
    valid: Bool[np.ndarray, " n"]  # False for padding (a sample without regions has only that).
    targets: Int32[np.ndarray, "n k"]  # Region indices, -1 padded: for a click every mask under it (at most k).
    asked: Int32[np.ndarray, " n"]  # The region that was clicked or boxed, whether it is among the targets or not; -1.


@dataclass(frozen=True)
class Sample:
    """One image ready for the model, after augmentation and crop."""

    index: int  # Global sample index in the plan: the key of every random draw.  -1: padding of a short batch.
    dataset: str  # "" for padding.
    sample_id: str
    image: UInt8[np.ndarray, "3 h w"]  # RGB
    atoms: AtomMap
    regions: Regions
    prompts: Prompts
    # Federated datasets: names that this image says anything about; None means all.
    checked_objects: Int32[np.ndarray, " x"] | None = None
    checked_parts: Int32[np.ndarray, " x"] | None = None
    not_exhaustive_objects: Int32[np.ndarray, " x"] | None = None
    # Labels of the atom map that are void or crowd: what is found there is neither right nor wrong.  None: no label.
    ignored: Bool[np.ndarray, " a"] | None = None
    masks_left_out: int = 0  # Masks of noise that would have made the table of the atom map too large.


@dataclass(frozen=True)
class Batch:
    """`b` samples of one worker.  Images are stacked; what is ragged stays with its sample."""

    step: int
    indices: Int64[np.ndarray, " b"]
    images: UInt8[np.ndarray, "b 3 h w"]
    prompt_boxes_cxcywh: Float[np.ndarray, "b n 4"]
    prompt_is_box: Bool[np.ndarray, "b n"]
    prompt_valid: Bool[np.ndarray, "b n"]
    prompt_targets: Int32[np.ndarray, "b n k"]
    prompt_asked: Int32[np.ndarray, "b n"]
    samples: tuple[Sample, ...]  # Atoms, regions, names; `samples[i].image` and `.prompts` are row i above.

    @staticmethod
    def of(samples: list[Sample], step: int, images: UInt8[np.ndarray, "b 3 h w"] | None = None) -> Batch:
        """Stack samples of equal image size and equal number of prompts.

        `images`: the stacked images, where somebody already put every sample's image in its row.
        """
        return Batch(
            step=step,
            indices=np.array([s.index for s in samples], np.int64),
            images=np.stack([s.image for s in samples]) if images is None else images,
            prompt_boxes_cxcywh=np.stack([s.prompts.boxes_cxcywh for s in samples]),
            prompt_is_box=np.stack([s.prompts.is_box for s in samples]),
            prompt_valid=np.stack([s.prompts.valid for s in samples]),
            prompt_targets=np.stack([s.prompts.targets for s in samples]),
            prompt_asked=np.stack([s.prompts.asked for s in samples]),
            samples=tuple(samples),
        )
