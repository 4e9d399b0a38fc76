"""Asks a model about one image: clicks and boxes on its regions, and everything that it finds by itself."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np
from jaxtyping import Float, Float32, UInt64
from torch import Tensor

from semsam.data.images import decode_jpeg
from semsam.data.manifest import Vocabulary
from semsam.data.schema import Record
from semsam.encoded_image import EncodedImage
from semsam.evaluation.items import Ask, ImageItem, Prompted, join_prompted
from semsam.evaluation.overlaps import Overlaps, as_bits
from semsam.evaluation.questions import AskedRegions, Questions, RegionPrompts, item_of
from semsam.everything import find_everything
from semsam.predictor import Decoded, Predictor, PromptStyle

# Of the soft masks that are measured at once: more would not stay in a processor's cache.
LOGIT_BYTES = 2**23


def ask(predictor: Predictor, record: Record, questions: Questions, vocabulary: Vocabulary | None = None) -> ImageItem:
    """What the model answers about a record, and what is true there; the predictor has the dataset's names.

    With a `vocabulary`, the dataset's own, it is also asked for everything in the image: instances, and segments where
    the dataset has stuff.

    No mask of a prompt is made at the image's own size.  Raises `ValueError`, naming the sample, where an answer is
    not finite or the image is broken.
    """
    try:
        asked = AskedRegions.of(record)
        predictor.set_image(decode_jpeg(record.image))
        image = _features(predictor)
        item = item_of(record, _answers(predictor, image, asked, asked.prompts(record, questions)))
        if vocabulary is None or not vocabulary.objects:
            return item
        has_stuff = not all(vocabulary.things)
        wanted = questions.everything
        wanted = replace(wanted, panoptic=wanted.panoptic and has_stuff, semantic=wanted.semantic and has_stuff)
        found = find_everything(image, predictor.generic_queries(), vocabulary, wanted)
        return replace(item, instances=found.instances, panoptic=found.panoptic, semantic=found.semantic)
    except ValueError as error:
        raise ValueError(f"{record.dataset} {record.split} {record.sample_id}: {error}") from None


def _features(predictor: Predictor) -> EncodedImage:
    image = predictor.image
    assert image is not None
    if not all(extreme.isfinite() for extreme in image.features.mask_features.aminmax()):
        raise ValueError("the model's features are not finite")
    return image


def _answers(predictor: Predictor, image: EncodedImage, asked: AskedRegions, prompts: RegionPrompts) -> Prompted:
    rows, columns = image.enlarging()
    overlaps = Overlaps(asked.atoms, rows.numpy(), columns.numpy())
    parts, num_clicks = [], int((prompts.ask != Ask.BOX).sum())
    for start, named in (
        (0, {"points_xy": prompts.click_xy[:num_clicks] + 0.5}),
        (num_clicks, {"boxes_xyxy": prompts.box_xyxy[num_clicks:]}),
    ):
        for decoded in predictor.decode(**named):
            some = prompts.take(slice(start, start + len(decoded.iou_predictions)))
            parts.append(_answer(predictor.prompt_style, image, asked, overlaps, some, decoded))
            start += len(some)
    return join_prompted(parts, predictor.model.settings.num_levels)


def _answer(
    style: PromptStyle,
    image: EncodedImage,
    asked: AskedRegions,
    overlaps: Overlaps,
    prompts: RegionPrompts,
    decoded: Decoded,
) -> Prompted:
    """What is kept of the answers to prompts of one kind."""
    if not all(values.isfinite().all() for values in vars(decoded).values()):
        raise ValueError("the model's answers are not finite")
    predicted = decoded.iou_predictions.cpu().numpy()
    objects, parts = decoded.object_scores.cpu().numpy(), decoded.part_scores.cpu().numpy()
    height, width = image.features.mask_features.shape[2:]
    step = max(LOGIT_BYTES // (4 * height * width * predicted.shape[1]), 1)
    is_click = not len(prompts) or prompts.ask[0] != Ask.BOX
    pieces = [_measured(image, overlaps, some, not is_click) for some in decoded.mask_embeddings.split(step)]
    ious, boxes, of_levels = (np.concatenate(piece) for piece in zip(*pieces, strict=True))
    chosen = style.choose(predicted, boxes, None if is_click else prompts.box_xyxy)
    return asked.answered(prompts, chosen, predicted, ious, of_levels, objects, parts)


def _measured(
    image: EncodedImage, overlaps: Overlaps, embeddings: Float[Tensor, "p k c"], with_boxes: bool
) -> tuple[Float[np.ndarray, "p k r"], Float[np.ndarray, "p k 4"], Float32[np.ndarray, "p k k"]]:
    """IoUs of prompts' masks with the regions, their tight boxes if wanted, and their IoUs with each other."""
    shape = embeddings.shape[:2]
    logits = image.small_mask_logits(embeddings.flatten(0, 1)).cpu().numpy()
    inside = as_bits(logits > 0)
    measured = overlaps.measure(logits, inside, with_boxes)
    height, width = (-(-side // 4) for side in image.input_size)  # Less what pads the input.
    shown = inside[:, :height] & as_bits(np.arange(logits.shape[2]) < width)
    return (
        overlaps.ious(measured.counts).reshape(*shape, overlaps.num_regions),
        measured.boxes_xyxy().reshape(*shape, 4),
        level_ious(shown.reshape(*shape, height * shown.shape[2])),
    )


def level_ious(masks: UInt64[np.ndarray, "p k w"]) -> Float32[np.ndarray, "p k k"]:
    """IoU of each prompt's masks, given as bits, with each other; two empty ones are the same."""
    areas = np.bitwise_count(masks).sum(axis=2, dtype=np.int64)
    found = np.ones((*areas.shape, areas.shape[1]), np.float32)
    for one, other in combinations(range(areas.shape[1]), 2):
        shared = np.bitwise_count(masks[:, one] & masks[:, other]).sum(axis=1, dtype=np.int64)
        unions = areas[:, one] + areas[:, other] - shared
        found[:, one, other] = found[:, other, one] = np.where(unions > 0, shared / np.maximum(unions, 1), 1)
    return found
