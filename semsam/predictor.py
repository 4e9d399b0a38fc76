"""Masks, scores and names for clicks and boxes on one image: the way to use a trained model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from semsam.config import Positive, PositiveShare, settings
from semsam.data.augmentation import PADDING_GREY
from semsam.data.images import MAX_PIXELS, Photo, read_photo
from semsam.data.manifest import Vocabulary
from semsam.detections import detections
from semsam.encoded_image import EncodedImage, Prompts, prompt_boxes
from semsam.everything import Everything, EverythingSettings, GenericQueries, find_everything
from semsam.model.pixel_decoder import ImageFeatures
from semsam.model.prompt_encoder import FurtherTokens
from semsam.model.semantic_sam import SemanticSam
from semsam.setting_kinds import did_you_mean
from semsam.several_clicks import Labels, SeveralClicks, mask_tokens

# The released model's levels: two of groups and scenes, one of objects, three of parts.  Each training finds its own
# order; `Answer.largest_first` needs to know none.
WHOLE_TO_PART = (3, 2, 0, 4, 1, 5)
PROMPTS_AT_ONCE = 256

Levels = Sequence[int] | Literal["whole_to_part"] | None


@settings
class ImageSize:
    """How an image is resized for the network; the paper evaluates at 800 and at most 1333."""

    short_side: Positive = 800
    max_long_side: Positive = 1333
    # Pad the image at the bottom and right to max_long_side x max_long_side, as training pads its crops.  Places are
    # relative to the padded image, so that a model that has seen few images needs this.
    square: bool = False

    def __post_init__(self) -> None:
        if not 32 <= self.short_side <= self.max_long_side:
            raise ValueError(f"short_side {self.short_side} must be from 32 to max_long_side {self.max_long_side}")

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the network's input for an image, at least one pixel each."""
        scale = min(self.short_side / min(height, width), self.max_long_side / max(height, width))
        return max(round(height * scale), 1), max(round(width * scale), 1)

    def apply(self, image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "y x 3"]:
        """The network's input for an image."""
        height, width = self.resized(*image.shape[:2])
        shrinks = height < image.shape[0] or width < image.shape[1]
        resized = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
        if not self.square:
            return resized
        padded = np.full((self.max_long_side, self.max_long_side, 3), PADDING_GREY, np.uint8)
        padded[:height, :width] = resized
        return padded


@settings
class PromptStyle:
    """How prompts are put to the model; `RELEASED` is how the authors' demo and mask generator do it."""

    # All prompts of a call see each other, so that an answer depends on what else was asked.
    joint_attention: bool = False
    # Width and height of a click's box as a fraction of the image's; None: +-3 pixels of the network's input.
    click_side: PositiveShare | None = None
    # Which level answers a box where only one may: the one whose mask has the box most like it, or the one that
    # predicts the highest IoU, as it is for a click.
    box_choice: Literal["mask_box", "predicted_iou"] = "mask_box"

    def choose(
        self,
        iou_predictions: Float[np.ndarray, "n k"],
        mask_boxes_xyxy: Float[np.ndarray, "n k 4"],
        boxes_xyxy: Float[np.ndarray, "n 4"] | None,
        agreement: Int64[np.ndarray, "n k"] | None = None,
    ) -> Int64[np.ndarray, " n"]:
        """The level to answer each prompt with where only one may be, from 0 to k; of equally good ones the first.

        `mask_boxes_xyxy` are the tight boxes of the levels' masks, and `boxes_xyxy` the prompts; None: they are clicks.
        Of a prompt with several clicks, only levels that agree with as many of them as any may answer.
        """
        scores = self.scores(iou_predictions, mask_boxes_xyxy, boxes_xyxy)
        if agreement is not None:
            scores = np.where(agreement == agreement.max(axis=1, keepdims=True), scores, -np.inf)
        return scores.argmax(axis=1)

    def scores(
        self,
        iou_predictions: Float[np.ndarray, "n k"],
        mask_boxes_xyxy: Float[np.ndarray, "n k 4"],
        boxes_xyxy: Float[np.ndarray, "n 4"] | None,
    ) -> Float[np.ndarray, "n k"]:
        """How good an answer each level is, by what `choose` chooses."""
        if boxes_xyxy is None or self.box_choice == "predicted_iou":
            return iou_predictions
        low = np.maximum(mask_boxes_xyxy[..., :2], boxes_xyxy[:, None, :2])
        high = np.minimum(mask_boxes_xyxy[..., 2:], boxes_xyxy[:, None, 2:])
        shared = (high - low).clip(0).prod(axis=2)
        areas = [(boxes[..., 2:] - boxes[..., :2]).prod(axis=-1) for boxes in (mask_boxes_xyxy, boxes_xyxy[:, None])]
        return shared / np.maximum(areas[0] + areas[1] - shared, 1e-9)


RELEASED = PromptStyle(joint_attention=True, click_side=0.005, box_choice="predicted_iou")


@dataclass(frozen=True)
class Answer:
    """What the model says to `n` prompts on an image of `h` x `w` pixels, at `k` levels each.

    Prompts and names are those of the call; the image's pixels are those that `read_photo` gives.
    """

    masks: Bool[np.ndarray, "n k h w"]
    boxes_xyxy: Float[np.ndarray, "n k 4"]  # In the image's pixels, and inside it.
    iou_predictions: Float[np.ndarray, "n k"]
    object_scores: Float[np.ndarray, "n k x"]  # Sigmoid, one per object name of the vocabulary.
    part_scores: Float[np.ndarray, "n k y"]
    levels: Int64[np.ndarray, "n k"]  # The model's own number of each level.
    chosen: Int64[np.ndarray, " n"]  # The level, from 0 to k, to show where only one may be; see `PromptStyle`.
    object_names: tuple[str, ...] = ()
    part_names: tuple[str, ...] = ()

    def best_object(self, prompt: int, level: int) -> tuple[str, float] | None:
        """The likeliest object name of a mask and its score; None without a vocabulary.  `level` counts from 0 to k."""
        return best_name(self.object_names, self.object_scores[prompt, level])

    def best_part(self, prompt: int, level: int) -> tuple[str, float] | None:
        """The likeliest part name of a mask and its score; None without a vocabulary."""
        return best_name(self.part_names, self.part_scores[prompt, level])

    def largest_first(self) -> Answer:
        """The same with each prompt's levels from its largest mask to its smallest: from whole to part."""
        order = np.argsort(-self.masks.sum(axis=(2, 3)), axis=1, kind="stable")
        by_level = ("masks", "boxes_xyxy", "iou_predictions", "object_scores", "part_scores", "levels")
        rows = np.arange(len(order))[:, None]
        chosen = (order == self.chosen[:, None]).argmax(axis=1)
        return replace(self, chosen=chosen, **{name: getattr(self, name)[rows, order] for name in by_level})

    def to_supervision(self, every_level: bool = False) -> Any:
        """`supervision.Detections`: of each prompt the chosen mask, or those of all levels, prompt by prompt.

        Boxes are the model's, class ids positions in `object_names`.  The confidence is the predicted IoU, times the
        likeliest object name's score where there is one.  `data`: see `semsam.detections`, and `prompt`, `level`,
        `iou_prediction`, `object_score`, `part_score`.  Raises `ValueError` where the library is not installed.
        """
        count, levels = self.iou_predictions.shape
        places = [(n, k) for n in range(count) for k in range(levels) if every_level or k == self.chosen[n]]
        prompt, level = np.array(places, np.int64).reshape(-1, 2).T
        predicted = self.iou_predictions[prompt, level]
        objects = [self.best_object(n, k) or (None, 1.0) for n, k in places]
        parts = [self.best_part(n, k) or (None, 1.0) for n, k in places]
        data: dict[str, list[Any]] = {
            "class_name": [name for name, _ in objects],
            "part_name": [name for name, _ in parts],
            "prompt": prompt.tolist(),
            "level": self.levels[prompt, level].tolist(),
            "iou_prediction": predicted.tolist(),
        }
        if self.object_names:
            data["object_score"] = [score for _, score in objects]
        if self.part_names:
            data["part_score"] = [score for _, score in parts]
        return detections(
            self.boxes_xyxy[prompt, level],
            self.masks[prompt, level],
            predicted * np.array([score for _, score in objects]),
            self.object_scores[prompt, level].argmax(axis=1).tolist() if self.object_names else None,
            data,
        )


@dataclass(frozen=True)
class Decoded:
    """What the model says to `n` prompts at `k` levels, before a mask is made; on the model's device."""

    mask_embeddings: Float[Tensor, "n k c"]
    boxes_xyxy: Float[Tensor, "n k 4"]  # In the image's pixels.
    iou_predictions: Float[Tensor, "n k"]
    object_scores: Float[Tensor, "n k x"]
    part_scores: Float[Tensor, "n k y"]


class Predictor:
    """Answers prompts on one image at a time; the image is encoded once.

    Prompts do not influence each other, unless `prompt_style` says so.  `object_names` and `part_names` are any
    strings; `set_vocabulary` replaces them without encoding the image again, and a name that was there before is not
    embedded again: the model's weights must not change meanwhile.  Images of more than `max_pixels` are refused by
    their header, before they are decoded.
    """

    def __init__(
        self,
        model: SemanticSam,
        image_size: ImageSize | None = None,
        prompt_style: PromptStyle | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.model = model.eval()
        self.image_size = image_size or ImageSize()
        self.prompt_style = prompt_style or PromptStyle()
        self.max_pixels = max_pixels
        self.device = next(model.parameters()).device
        self.image: EncodedImage | None = None
        self._embedded: dict[str, Float[Tensor, " d"]] = {}
        self.set_vocabulary((), ())

    @staticmethod
    def load(
        path_or_uri: str | Path,
        device: str | torch.device | None = None,
        image_size: ImageSize | None = None,
        prompt_style: PromptStyle | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> Predictor:
        """A predictor of the model in a checkpoint folder, local or `s3://`; on the GPU if there is one.

        Raises `ValueError` as `SemanticSam.load` does.
        """
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        return Predictor(SemanticSam.load(path_or_uri).to(device), image_size, prompt_style, max_pixels)

    def set_vocabulary(self, object_names: Iterable[str], part_names: Iterable[str] = ()) -> None:
        """Use these names from now on.  Empty lists are legal: there are no scores then."""
        self.object_names, self.part_names = _checked_names(object_names), _checked_names(part_names)
        self._objects, self._parts = self._embed(self.object_names), self._embed(self.part_names)

    def set_image(self, image: Photo | EncodedImage) -> None:
        """Encode an image (see `read_photo` for what it may be); later calls refer to it."""
        self.image = image if isinstance(image, EncodedImage) else self.encode([image])[0]

    @torch.no_grad()
    def encode(self, photos: Iterable[Photo]) -> list[EncodedImage]:
        """The images' features; images that have the same size for the network are encoded together."""
        images = [read_photo(photo, self.max_pixels) for photo in photos]
        by_size: dict[tuple[int, int], list[int]] = {}
        for index, image in enumerate(images):
            by_size.setdefault(self.image_size.resized(*image.shape[:2]), []).append(index)
        encoded: dict[int, EncodedImage] = {}
        for size, indices in by_size.items():
            pixels = torch.from_numpy(np.stack([self.image_size.apply(images[i]) for i in indices]))
            features = self.model.encode_image(pixels.permute(0, 3, 1, 2).to(self.device))
            for place, i in enumerate(indices):
                one = slice(place, place + 1)
                levels = tuple(level[one] for level in features.levels)
                own = ImageFeatures(features.mask_features[one], levels, features.padded_size)
                encoded[i] = EncodedImage(own, images[i].shape[:2], size)
        return [encoded[i] for i in range(len(images))]

    @torch.no_grad()
    def predict(
        self,
        points_xy: Prompts = None,
        boxes_xyxy: Prompts = None,
        levels: Levels = None,
        labels: Labels = None,
        last_masks: np.ndarray | None = None,
    ) -> Answer:
        """Masks for the clicks, then for the boxes, in the image's pixels.  No prompt at all gives empty arrays.

            predictor.predict([[40, 52], [90, 60]])  # Two prompts.
            predictor.predict([[40, 52], [90, 60]], labels=[1, 0])  # One prompt: this, without that.

        With `labels` a prompt is several clicks, 1 on the object and 0 beside it: `points_xy` are rows of them for one
        prompt, or one array of rows for each (shorter ones are filled up with label -1); boxes, if any, are one for
        each prompt.  `last_masks` are those that are to be corrected, one for each prompt: masks of an earlier answer,
        or numbers before the sigmoid, at any size that covers the image.  Both need a model with `further_clicks`.

        `levels` chooses among the model's levels by their numbers, in that order; "whole_to_part" is all of them in
        the released model's order, None in the model's own.  Boxes may reach beyond the image.  The answer takes
        n * k * h * w bytes; `semsam.automatic_masks` keeps masks as run lengths instead.  Raises `ValueError` for a
        prompt outside the image, a box without area, and where no image was set.
        """
        image, several = self._image(), None if labels is None else SeveralClicks.of(points_xy, labels)
        parts = list(self.decode(points_xy, boxes_xyxy, levels, labels, last_masks))
        count, chosen = sum(len(part.iou_predictions) for part in parts), self.chosen_levels(levels)
        masks = np.empty((count * len(chosen), *image.size), bool)
        start = 0
        for part in parts:
            for embeddings in part.mask_embeddings.flatten(0, 1).split(image.masks_at_once()):
                logits = image.at_own_size(image.mask_logits(embeddings))
                masks[start : start + len(embeddings)] = (logits > 0).cpu().numpy()
                start += len(embeddings)

        def joined(name: str) -> np.ndarray:
            return torch.cat([getattr(part, name) for part in parts]).cpu().numpy()

        by_prompt = masks.reshape(count, len(chosen), *image.size)
        iou_predictions = joined("iou_predictions")
        return Answer(
            masks=by_prompt,
            boxes_xyxy=joined("boxes_xyxy"),
            iou_predictions=iou_predictions,
            object_scores=joined("object_scores"),
            part_scores=joined("part_scores"),
            levels=np.tile(np.array(chosen, np.int64), (count, 1)),
            chosen=self._choose(iou_predictions, by_prompt, boxes_xyxy, several),
            object_names=self.object_names,
            part_names=self.part_names,
        )

    def everything(
        self,
        things: Iterable[str] | None = None,
        object_parts: Iterable[tuple[str, str]] | None = None,
        settings: EverythingSettings | None = None,
    ) -> Everything:
        """Everything in the image that the vocabulary has a name for, without clicks.

            predictor.set_vocabulary(["car", "road"], ["wheel", "door"])
            predictor.set_image("photo.jpg")
            found = predictor.everything(things=["car"], object_parts=[("car", "wheel"), ("car", "door")])
            for segment in found.panoptic:
                print(predictor.object_names[segment.object_category], segment.score)

        `things` are the object names that are countable, the others being stuff; None: all.  `object_parts` says which
        objects have which parts; None: each of them all.  Masks are run lengths (`semsam.data.rle.decode`).  Raises
        `ValueError` without an image or object names, for names that are not in the vocabulary, and where the model's
        predictions are not finite.
        """
        image = self._image()
        if not self.object_names:
            raise ValueError("no object names yet: call set_vocabulary before asking for everything")
        vocabulary = self._vocabulary(things, object_parts)
        return find_everything(image, self.generic_queries(), vocabulary, settings)

    @torch.no_grad()
    def generic_queries(self) -> GenericQueries:
        """What the model says of the image without being asked, before a mask is made."""
        image = self._image()
        last = self.model.decode(
            image.features,
            torch.zeros(1, 0, 4, device=self.device),
            torch.zeros(1, 0, dtype=torch.bool, device=self.device),
            self._objects,
            self._parts,
            every_layer=False,
        ).generic[-1]
        return GenericQueries(
            last.mask_embeddings[0],
            image.own_boxes(last.boxes_cxcywh[0].float()),
            last.object_logits[0].float().sigmoid(),
            last.part_logits[0].float().sigmoid(),
        )

    @torch.no_grad()
    def decode(
        self,
        points_xy: Prompts = None,
        boxes_xyxy: Prompts = None,
        levels: Levels = None,
        labels: Labels = None,
        last_masks: np.ndarray | None = None,
    ) -> Iterator[Decoded]:
        """`predict` without its masks, in one or more parts of at most `PROMPTS_AT_ONCE` prompts.

        With `joint_attention` there is one part, for its prompts belong together.
        """
        image, chosen, click_side = self._image(), list(self.chosen_levels(levels)), self.prompt_style.click_side
        further: FurtherTokens | None = None
        if labels is not None:
            clicks = SeveralClicks.of(points_xy, labels)
            points_xy = None
            if boxes_xyxy is None or not len(boxes_xyxy):
                points_xy, clicks = clicks.first()
            further = clicks.tokens(image, click_side)
        prompts, is_box = prompt_boxes(points_xy, boxes_xyxy, image, click_side)
        if last_masks is not None:
            masks = mask_tokens(last_masks, image)
            further = masks if further is None else further.joined(masks)
        if further is not None and further.valid.shape[1] != len(prompts):
            raise ValueError(f"labels or last_masks are for {further.valid.shape[1]} prompts, not {len(prompts)}")
        at_once = len(prompts) if self.prompt_style.joint_attention else PROMPTS_AT_ONCE
        for start in range(0, max(len(prompts), 1), max(at_once, 1)):
            some = slice(start, start + at_once)
            said_more = None if further is None else further.take(some)
            yield self._decode(image, prompts[some].to(self.device), is_box[some].to(self.device), chosen, said_more)

    def chosen_levels(self, levels: Levels) -> tuple[int, ...]:
        """The numbers of the levels meant; `ValueError` for those that the model does not have."""
        count = self.model.settings.num_levels
        if isinstance(levels, str) and levels != "whole_to_part":
            raise ValueError(f'levels are numbers or "whole_to_part", not {levels!r}')
        chosen = WHOLE_TO_PART if isinstance(levels, str) else range(count) if levels is None else levels
        if not all(0 <= level < count for level in chosen):
            raise ValueError(f"levels {list(chosen)}: the model's are 0 to {count - 1}")
        return tuple(int(level) for level in chosen)

    def _choose(
        self,
        iou_predictions: Float[np.ndarray, "n k"],
        masks: Bool[np.ndarray, "n k h w"],
        boxes_xyxy: Prompts,
        several: SeveralClicks | None,
    ) -> Int64[np.ndarray, " n"]:
        boxes = np.asarray([] if boxes_xyxy is None else boxes_xyxy, np.float64).reshape(-1, 4)
        clicks = len(masks) - len(boxes)
        if not masks.shape[1]:
            return np.zeros(len(masks), np.int64)
        tight = mask_boxes_xyxy(masks[clicks:])
        if several is not None:
            agreement = several.agreement(masks)
            return self.prompt_style.choose(iou_predictions, tight, boxes if len(boxes) else None, agreement)
        parts = (iou_predictions[:clicks], tight[:0], None), (iou_predictions[clicks:], tight, boxes)
        return np.concatenate([self.prompt_style.choose(*part) for part in parts])

    def _decode(
        self,
        image: EncodedImage,
        prompts: Float[Tensor, "n 4"],
        is_box: Bool[Tensor, " n"],
        levels: list[int],
        further: FurtherTokens | None,
    ) -> Decoded:
        last = self.model.decode(
            image.features,
            prompts[None],
            is_box[None],
            self._objects,
            self._parts,
            with_generic=False,
            every_layer=False,
            joint_attention=self.prompt_style.joint_attention,
            further=further,
        ).prompts[-1]

        def by_prompt(values: Float[Tensor, "1 q *c"]) -> Float[Tensor, "n k *c"]:
            return values[0].unflatten(0, (len(prompts), self.model.settings.num_levels))[:, levels]

        return Decoded(
            by_prompt(last.mask_embeddings),
            image.own_boxes(by_prompt(last.boxes_cxcywh).float()),
            by_prompt(last.iou_predictions).float(),
            by_prompt(last.object_logits).float().sigmoid(),
            by_prompt(last.part_logits).float().sigmoid(),
        )

    @torch.no_grad()
    def _embed(self, names: Sequence[str]) -> Float[Tensor, "x d"]:
        new = [name for name in dict.fromkeys(names) if name not in self._embedded]
        self._embedded.update(zip(new, self.model.encode_names(new), strict=True))
        return torch.stack([self._embedded[name] for name in names]) if names else self.model.encode_names(())

    def _vocabulary(self, things: Iterable[str] | None, object_parts: Iterable[tuple[str, str]] | None) -> Vocabulary:
        """The vocabulary with what the caller knows of its names; one that is in it twice is meant both times."""
        things = self.object_names if things is None else _checked_names(things)
        are_things = {place for name in things for place in _places(name, self.object_names, "things")}
        pairs = [
            (of_object, part)
            for object_name, part_name in object_parts or ()
            for of_object in _places(object_name, self.object_names, "object_parts")
            for part in _places(part_name, self.part_names, "object_parts")
        ]
        is_thing = tuple(place in are_things for place in range(len(self.object_names)))
        return Vocabulary(self.object_names, self.part_names, is_thing, tuple(dict.fromkeys(pairs)))

    def _image(self) -> EncodedImage:
        if self.image is None:
            raise ValueError("no image yet: call set_image before asking about it")
        return self.image


def _checked_names(names: Iterable[str]) -> tuple[str, ...]:
    """The names of a list, or of whatever else gives them one after the other, perhaps only once."""
    is_list = isinstance(names, Iterable) and not isinstance(names, str | bytes | Mapping)
    found = tuple(names) if is_list else None
    if found is None or not all(isinstance(name, str) and name.strip() for name in found):
        raise ValueError(
            f"a vocabulary is a list of names, none of them empty, not {names if found is None else found!r}"
        )
    return found


def mask_boxes_xyxy(masks: Bool[np.ndarray, "*m h w"]) -> Float[np.ndarray, "*m 4"]:
    """The tight boxes of dense masks in pixel edges; zeros for an empty mask."""
    sides = []
    for axis in (-2, -1):
        inside = np.asarray(masks.any(axis=axis))
        first, last = inside.argmax(axis=-1), inside.shape[-1] - inside[..., ::-1].argmax(axis=-1)
        sides.append((first, np.where(inside.any(axis=-1), last, 0)))
    (left, right), (top, bottom) = sides
    return np.stack([left, top, right, bottom], axis=-1).astype(np.float64)


def _places(name: str, names: tuple[str, ...], where: str) -> list[int]:
    """Where a name stands in the vocabulary."""
    if name not in names:
        raise ValueError(f"{where}: {name!r} is not in the vocabulary{did_you_mean(str(name), names)}")
    return [place for place, one in enumerate(names) if one == name]


def best_name(names: Sequence[str], scores: Float[np.ndarray, " x"]) -> tuple[str, float] | None:
    """The name with the highest score, and that score; None where there are no names."""
    if not names:
        return None
    best = int(np.argmax(scores))
    return names[best], float(scores[best])
