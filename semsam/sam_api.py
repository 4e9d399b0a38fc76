"""This model under the names that users of Segment Anything call: predictor, mask generator, registry.

    from semsam.sam_api import SamAutomaticMaskGenerator, SamPredictor, sam_model_registry

    sam = sam_model_registry["default"](checkpoint="outputs/quickstart/runs/toy/checkpoint-720")
    predictor = SamPredictor(sam)
    predictor.set_image(image)  # RGB, h x w x 3, uint8.
    masks, scores, logits = predictor.predict(point_coords=np.array([[40, 52]]), point_labels=np.array([1]))
    records = SamAutomaticMaskGenerator(sam).generate(image)

A tool that imports `segment_anything` gets this instead after
`sys.modules["segment_anything"] = importlib.import_module("semsam.sam_api")`.  Where the network's input, the style of
prompts or a vocabulary are not the defaults, both classes take a `semsam.predictor.Predictor` in place of the model.

Which three of the six levels `multimask_output=True` gives: see `semsam.sam_choice`.  Several clicks, a box and
`mask_input` make one prompt.  A model with `further_clicks` sees them all; of any other each positive click (or the
box, where there is one) is asked alone, and all its answers compete: first by how many of all clicks, positive and
negative, a mask is right about, then by the predicted IoU times the overlap with `mask_input`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from semsam.automatic_masks import AutomaticMasks, AutomaticMaskSettings
from semsam.data.images import Photo
from semsam.encoded_image import EncodedImage
from semsam.model.presets import PRESETS
from semsam.model.semantic_sam import SemanticSam
from semsam.predictor import Decoded, Predictor
from semsam.sam_choice import in_order, mask_iou, three_of
from semsam.sam_dictionaries import (
    LOW_SQUARE,
    OutputMode,
    ResizeLongestSide,
    dictionaries,
    low_resolution,
    low_size,
)
from semsam.several_clicks import SeveralClicks

Found = tuple[Tensor, Float[Tensor, "b c"], Float[Tensor, "b c 256 256"]]


class SamPredictor:
    """Answers prompts on one image, which is encoded once."""

    def __init__(self, sam_model: SemanticSam | Predictor) -> None:
        self.predictor = sam_model if isinstance(sam_model, Predictor) else Predictor(sam_model)
        self.model = self.predictor.model
        self.transform = ResizeLongestSide()  # From the image's pixels to those of `predict_torch`.

    @property
    def device(self) -> torch.device:
        return self.predictor.device

    @property
    def is_image_set(self) -> bool:
        return self.predictor.image is not None

    @property
    def original_size(self) -> tuple[int, int]:
        """Height and width of the image."""
        return self._image().size

    def set_image(self, image: Photo, image_format: str = "RGB") -> None:
        """Encode an image, h x w x 3 of uint8 (or whatever else `read_photo` takes); `image_format` is RGB or BGR."""
        if image_format not in ("RGB", "BGR"):
            raise ValueError(f"image_format is RGB or BGR, not {image_format!r}")
        if image_format == "BGR":
            if not isinstance(image, np.ndarray):
                raise ValueError("image_format: BGR is for arrays of pixels; other images know their colours")
            image = np.ascontiguousarray(image[..., ::-1])
        self.predictor.set_image(image)

    def reset_image(self) -> None:
        """Forget the image."""
        self.predictor.image = None

    def get_image_embedding(self) -> Float[Tensor, "1 c y x"]:
        """The features that masks are made of, at a fourth of the network's padded input; SAM's have other sizes."""
        return self._image().features.mask_features

    def predict(
        self,
        point_coords: np.ndarray | None = None,
        point_labels: np.ndarray | None = None,
        box: np.ndarray | None = None,
        mask_input: np.ndarray | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> tuple[np.ndarray, Float[np.ndarray, " c"], Float[np.ndarray, "c 256 256"]]:
        """Masks (c x h x w, bool, or floats before the sigmoid), their predicted IoUs and low-resolution logits.

        All that is given is one prompt: clicks (t x 2, in the image's pixels) with their labels (1 on the object, 0
        beside it, -1 for none), a box (x1, y1, x2, y2), and the low-resolution logits of an earlier answer (1 x 256 x
        256) that is to be corrected.  There are three masks, from part to whole, or with `multimask_output=False` the
        best one.  Raises `ValueError` without an image, for clicks without labels, for a prompt with neither a positive
        click nor a box, and for places outside the image.
        """
        if (point_coords is None) != (point_labels is None):
            raise ValueError("point_coords and point_labels belong together: give both or neither")
        prompts = _Prompts.of(
            None if point_coords is None else np.asarray(point_coords, np.float64).reshape(1, -1, 2),
            None if point_labels is None else np.asarray(point_labels).reshape(1, -1),
            None if box is None else np.asarray(box, np.float64).reshape(-1, 4),
            None if mask_input is None else np.asarray(mask_input)[None],
            self._image(),
        )
        masks, scores, low = (one[0].cpu().numpy() for one in self._answer(prompts, multimask_output, return_logits))
        return masks, scores, low

    def predict_torch(
        self,
        point_coords: Float[Tensor, "b t 2"] | None,
        point_labels: Int64[Tensor, "b t"] | None,
        boxes: Float[Tensor, "b 4"] | None = None,
        mask_input: Float[Tensor, "b 1 256 256"] | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> Found:
        """As `predict` for `b` prompts, whose clicks and boxes `transform` has put into its square of 1024."""
        size, back = self._image().size, self.transform.back
        given = [None if one is None else one.cpu().numpy() for one in (point_coords, point_labels, boxes, mask_input)]
        points, labels, corners, masks = given
        if (points is None) != (labels is None):
            raise ValueError("point_coords and point_labels belong together: give both or neither")
        prompts = _Prompts.of(
            None if points is None else back(points.astype(np.float64), size),
            labels,
            None if corners is None else back(corners.reshape(-1, 2, 2).astype(np.float64), size).reshape(-1, 4),
            masks,
            self._image(),
        )
        return self._answer(prompts, multimask_output, return_logits)

    @torch.no_grad()
    def _answer(self, prompts: _Prompts, multimask_output: bool, return_logits: bool) -> Found:
        image = self._image()
        found = [
            self._of_prompt(image, candidates, prompts.at(place), multimask_output, return_logits)
            for place, candidates in enumerate(self._candidates(prompts))
        ]
        masks, scores, low = (torch.stack(one) for one in zip(*found, strict=True))
        return masks, scores, low

    def _candidates(self, prompts: _Prompts) -> Iterator[_Candidates]:
        """What the model says to each prompt."""
        clicks, boxes, last = prompts.clicks, prompts.boxes_xyxy, prompts.last_masks
        if prompts.is_one_click_or_box():
            points = None if boxes is not None else clicks.xy[:, 0]
            yield from _by_prompt(self.predictor.decode(points, boxes))
        elif self._sees_everything():
            xy, labels = (clicks.xy, clicks.labels) if (clicks.labels >= 0).any() else (None, None)
            yield from _by_prompt(self.predictor.decode(xy, boxes, labels=labels, last_masks=last))
        else:
            for place in range(len(prompts)):
                one = prompts.at(place)
                positive = one.clicks.xy[one.clicks.labels == 1]
                answers = self.predictor.decode(positive if one.boxes_xyxy is None else None, one.boxes_xyxy)
                candidates = list(_by_prompt(answers))
                yield _Candidates(
                    torch.cat([some.embeddings for some in candidates]),
                    torch.cat([some.iou_predictions for some in candidates]),
                    is_blind=True,
                )

    def _sees_everything(self) -> bool:
        """Whether the model itself takes several clicks and masks."""
        return self.model.settings.further_clicks and not self.predictor.prompt_style.joint_attention

    def _of_prompt(
        self,
        image: EncodedImage,
        candidates: _Candidates,
        prompt: _Prompts,
        multimask_output: bool,
        return_logits: bool,
    ) -> tuple[Tensor, Float[Tensor, " c"], Float[Tensor, "c 256 256"]]:
        parts = candidates.embeddings.split(image.masks_at_once())
        masks = np.concatenate([(_own_size(image, some) > 0).cpu().numpy() for some in parts])
        likeness = None
        if candidates.is_blind and prompt.last_masks is not None:
            height, width = low_size(image)
            low = torch.cat([low_resolution(image, some) for some in parts])[:, :height, :width].cpu().numpy()
            likeness = np.array([mask_iou(one > 0, prompt.last_masks[0] > 0) for one in low])
        agreement = prompt.clicks.agreement(masks[None])[0]
        order = in_order(
            self.predictor.prompt_style,
            candidates.iou_predictions.cpu().numpy(),
            masks,
            None if prompt.boxes_xyxy is None else prompt.boxes_xyxy[0],
            # A click alone is answered as `Predictor.predict` answers it, by predicted IoU.
            np.zeros_like(agreement) if prompt.is_one_click_or_box() else agreement,
            likeness,
        )
        taken = three_of(order, masks) if multimask_output else order[:1]
        own = torch.from_numpy(taken).to(candidates.embeddings.device)
        embeddings = candidates.embeddings[own]
        given = _own_size(image, embeddings) if return_logits else torch.from_numpy(masks[taken]).to(own.device)
        return given, candidates.iou_predictions[own], low_resolution(image, embeddings)

    def _image(self) -> EncodedImage:
        if self.predictor.image is None:
            raise ValueError("no image yet: call set_image before asking about it")
        return self.predictor.image


class SamAutomaticMaskGenerator:
    """Finds the masks of everything in an image, as `semsam.automatic_masks` does, with SAM's settings and defaults.

    `point_grids` is a list of one array of clicks (n x 2, as fractions of the width and height), in place of
    `points_per_side`, which is None then.  Raises `ValueError` for crops, which there are none of, and for settings out
    of range.
    """

    def __init__(
        self,
        model: SemanticSam | Predictor,
        points_per_side: int | None = 32,
        points_per_batch: int = 64,
        pred_iou_thresh: float = 0.88,
        stability_score_thresh: float = 0.95,
        stability_score_offset: float = 1.0,
        box_nms_thresh: float = 0.7,
        crop_n_layers: int = 0,
        crop_nms_thresh: float = 0.7,
        crop_overlap_ratio: float = 512 / 1500,
        crop_n_points_downscale_factor: int = 1,
        point_grids: Sequence[np.ndarray] | None = None,
        min_mask_region_area: int = 0,
        output_mode: OutputMode = "binary_mask",
    ) -> None:
        if crop_n_layers:
            raise ValueError(f"crop_n_layers {crop_n_layers}: only whole images are looked at; leave it at 0")
        if (points_per_side is None) == (point_grids is None):
            raise ValueError("give points_per_side or point_grids, and None for the other")
        if output_mode not in get_args(OutputMode):
            raise ValueError(f"output_mode is one of {list(get_args(OutputMode))}, not {output_mode!r}")
        self.output_mode = output_mode
        self.predictor = SamPredictor(model)
        settings = AutomaticMaskSettings(
            points_per_side=points_per_side or 1,
            points_per_batch=points_per_batch,
            min_iou=pred_iou_thresh,
            min_stability=stability_score_thresh,
            stability_offset=stability_score_offset,
            max_overlap=box_nms_thresh,
            min_region_area=min_mask_region_area,
        )
        points = None if point_grids is None else _grid(point_grids)
        self._masks = AutomaticMasks(self.predictor.predictor, settings, points)

    def generate(self, image: Photo) -> list[dict[str, Any]]:
        """SAM's dictionaries for an image (RGB, h x w x 3 of uint8); see `semsam.sam_dictionaries`."""
        return dictionaries(self._masks.of_image(image), self.output_mode)


def build_sam(checkpoint: str | Path | None = None, preset: str | None = None) -> SemanticSam:
    """The model in a checkpoint folder of ours, which knows its own size; None: random weights of `preset`.

    Raises `ValueError` for neither, for a file (SAM's own weights are of another architecture), and as
    `SemanticSam.load` does.
    """
    if checkpoint is None and preset is None:
        raise ValueError("checkpoint: name a checkpoint folder; random weights are for the presets by name")
    if checkpoint is None:
        return SemanticSam.untrained(str(preset))
    if Path(checkpoint).is_file():
        raise ValueError(
            f"checkpoint: {checkpoint} is a file; this model's checkpoints are folders (SAM's weights do not fit it, "
            "and `python -m jobs.export` makes a folder of the Semantic-SAM authors' files)"
        )
    return SemanticSam.load(checkpoint)


# By SAM's names, all of which read whatever checkpoint they are given, and by those of this project's presets.
sam_model_registry: dict[str, Callable[..., SemanticSam]] = {
    **dict.fromkeys(("default", "vit_h", "vit_l", "vit_b"), build_sam),
    **{name: partial(build_sam, preset=name) for name in PRESETS},
}


@dataclass(frozen=True)
class _Candidates:
    """The `m` masks of which some answer a prompt."""

    embeddings: Float[Tensor, "m c"]
    iou_predictions: Float[Tensor, " m"]
    is_blind: bool = False  # The model has not seen all of the prompt.


@dataclass(frozen=True)
class _Prompts:
    """What `b` prompts consist of, in the image's pixels."""

    clicks: SeveralClicks  # Perhaps none to a prompt.
    boxes_xyxy: Float[np.ndarray, "b 4"] | None
    last_masks: Float[np.ndarray, "b y x"] | None  # Of the image, without what pads it to a square.

    @staticmethod
    def of(
        points_xy: Float[np.ndarray, "b t 2"] | None,
        labels: Int64[np.ndarray, "b t"] | None,
        boxes_xyxy: Float[np.ndarray, "b 4"] | None,
        mask_input: Float[np.ndarray, "b 1 256 256"] | None,
        image: EncodedImage,
    ) -> _Prompts:
        """Raises `ValueError` for prompts that do not fit together or the image."""
        if boxes_xyxy is not None and not np.isfinite(boxes_xyxy).all():
            raise ValueError(f"box: {boxes_xyxy.tolist()} are not all numbers")
        count = len(points_xy) if points_xy is not None else 0 if boxes_xyxy is None else len(boxes_xyxy)
        if points_xy is None or labels is None:
            points_xy, labels = np.zeros((count, 0, 2)), np.zeros((count, 0), np.int64)
        clicks = SeveralClicks.of(points_xy, labels)
        if boxes_xyxy is not None and len(boxes_xyxy) != count:
            raise ValueError(f"box: {len(boxes_xyxy)} boxes for {count} prompts")
        if not count or (boxes_xyxy is None and not (clicks.labels == 1).any(axis=1).all()):
            raise ValueError("a prompt needs a positive click (point_labels 1) or a box")
        _check_inside(clicks, image)
        if mask_input is None:
            return _Prompts(clicks, boxes_xyxy, None)
        expected = (count, 1, LOW_SQUARE, LOW_SQUARE)
        if mask_input.shape != expected or not np.issubdtype(mask_input.dtype, np.floating):
            shown = f"{mask_input.dtype} of {list(mask_input.shape[1:])}"
            raise ValueError(f"mask_input: low-resolution logits are floats of [1, 256, 256], not {shown}")
        height, width = low_size(image)
        return _Prompts(clicks, boxes_xyxy, mask_input[:, 0, :height, :width])

    def __len__(self) -> int:
        return len(self.clicks.labels)

    def at(self, place: int) -> _Prompts:
        """One of them alone."""
        one = slice(place, place + 1)
        boxes, masks = (None if all_ is None else all_[one] for all_ in (self.boxes_xyxy, self.last_masks))
        return replace(
            self,
            clicks=SeveralClicks(self.clicks.xy[one], self.clicks.labels[one]),
            boxes_xyxy=boxes,
            last_masks=masks,
        )

    def is_one_click_or_box(self) -> bool:
        """Whether each is a positive click, or each a box, and nothing else."""
        labels: Bool[np.ndarray, "b t"] = self.clicks.labels >= 0
        if self.last_masks is not None or (self.boxes_xyxy is not None and labels.any()):
            return False
        return self.boxes_xyxy is not None or self.clicks.labels.shape[1] == 1


def _by_prompt(parts: Iterator[Decoded]) -> Iterator[_Candidates]:
    for part in parts:
        for embeddings, predictions in zip(part.mask_embeddings, part.iou_predictions, strict=True):
            yield _Candidates(embeddings, predictions)


def _own_size(image: EncodedImage, embeddings: Float[Tensor, "m c"]) -> Float[Tensor, "m h w"]:
    return image.at_own_size(image.mask_logits(embeddings))


def _check_inside(clicks: SeveralClicks, image: EncodedImage) -> None:
    """Raise `ValueError` for a click outside the image, also where the model does not see it."""
    height, width = image.size
    given = clicks.xy[clicks.labels >= 0]
    outside = given[~((given >= 0) & (given < [width, height])).all(axis=1)]
    if len(outside):
        raise ValueError(
            f"point_coords: ({outside[0][0]:g}, {outside[0][1]:g}) is outside the image of {width} x {height} pixels"
        )


def _grid(point_grids: Sequence[np.ndarray]) -> Float[np.ndarray, "n 2"]:
    """The clicks of the only layer.  Raises `ValueError` for anything but one array of fractions."""
    if len(point_grids) != 1:
        raise ValueError(f"point_grids: one array, for the whole image, not {len(point_grids)}")
    points = np.asarray(point_grids[0], np.float64)
    if points.ndim != 2 or points.shape[1] != 2 or not ((points >= 0) & (points < 1)).all():
        raise ValueError("point_grids: an array of n x 2 fractions of the image's width and height, from 0 to below 1")
    return points


__all__ = [
    "ResizeLongestSide",
    "SamAutomaticMaskGenerator",
    "SamPredictor",
    "build_sam",
    "sam_model_registry",
]
