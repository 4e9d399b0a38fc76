"""Asks a model about one image: clicks and boxes on its regions, and everything that it finds by itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations

import numpy as np
from jaxtyping import Bool, Float32

from semsam.data.images import decode_jpeg
from semsam.data.manifest import Vocabulary
from semsam.data.schema import Record
from semsam.encoded_image import MAP_BYTES, EncodedImage
from semsam.evaluation.items import Ask, ImageItem, Prompted, join_prompted
from semsam.evaluation.overlaps import Overlaps
from semsam.evaluation.questions import AskedRegions, Questions, RegionPrompts, item_of
from semsam.everything import find_everything
from semsam.predictor import Predictor


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
        return replace(item, **vars(found))
    except ValueError as error:
        raise ValueError(f"{record.dataset} {record.split} {record.sample_id}: {error}") from None


def _features(predictor: Predictor) -> EncodedImage:
    image = predictor.image
    assert image is not None
    if not image.features.mask_features.isfinite().all():
        raise ValueError("the model's features are not finite")
    return image


def _answers(predictor: Predictor, image: EncodedImage, asked: AskedRegions, prompts: RegionPrompts) -> Prompted:
    rows, columns = image.enlarging()
    overlaps = Overlaps(asked.atoms, rows.numpy(), columns.numpy())
    parts = [_answer(predictor, image, asked, overlaps, some) for some in _chunks(predictor, image, prompts)]
    return join_prompted(parts, predictor.model.settings.num_levels)


def _chunks(predictor: Predictor, image: EncodedImage, prompts: RegionPrompts) -> Iterator[RegionPrompts]:
    """Clicks, then boxes, in groups whose logits take no more than `MAP_BYTES`."""
    height, width = image.features.mask_features.shape[2:]
    step = max(MAP_BYTES // (4 * height * width * predictor.model.settings.num_levels), 1)
    num_clicks = int((prompts.ask != Ask.BOX).sum())
    for begin, end in ((0, num_clicks), (num_clicks, len(prompts))):
        for start in range(begin, end, step):
            yield prompts.take(slice(start, min(start + step, end)))


def _answer(
    predictor: Predictor, image: EncodedImage, asked: AskedRegions, overlaps: Overlaps, prompts: RegionPrompts
) -> Prompted:
    is_box = prompts.ask[0] == Ask.BOX
    [decoded] = predictor.decode(
        **{"boxes_xyxy": prompts.box_xyxy} if is_box else {"points_xy": prompts.click_xy + 0.5}
    )
    predicted = decoded.iou_predictions.cpu().numpy()
    objects, parts = decoded.object_scores.cpu().numpy(), decoded.part_scores.cpu().numpy()
    if not all(values.isfinite().all() for values in vars(decoded).values()):
        raise ValueError("the model's answers are not finite")
    logits = image.small_mask_logits(decoded.mask_embeddings.flatten(0, 1)).cpu().numpy()
    measured = overlaps.measure(logits)
    ious = overlaps.ious(measured.counts).reshape(*predicted.shape, len(asked.regions))
    boxes = measured.boxes_xyxy().reshape(*predicted.shape, 4)
    chosen = predictor.prompt_style.choose(predicted, boxes, prompts.box_xyxy if is_box else None)
    shown = logits[:, : -(-image.input_size[0] // 4), : -(-image.input_size[1] // 4)]  # Less what pads the input.
    levels = (shown > 0).reshape(*predicted.shape, *shown.shape[1:])
    return asked.answered(prompts, chosen, predicted, ious, level_ious(levels), objects, parts)


def level_ious(masks: Bool[np.ndarray, "p k y x"]) -> Float32[np.ndarray, "p k k"]:
    """IoU of each prompt's masks with each other; two empty ones are the same."""
    packed = np.packbits(masks.reshape(*masks.shape[:2], -1), axis=2)  # Eight pixels to a byte.
    areas = np.bitwise_count(packed).sum(axis=2, dtype=np.int64)
    found = np.ones((*areas.shape, areas.shape[1]), np.float32)
    for one, other in combinations(range(areas.shape[1]), 2):
        shared = np.bitwise_count(packed[:, one] & packed[:, other]).sum(axis=1, dtype=np.int64)
        unions = areas[:, one] + areas[:, other] - shared
        found[:, one, other] = found[:, other, one] = np.where(unions > 0, shared / np.maximum(unions, 1), 1)
    return found
