"""Further rounds of clicks, each where the last round's answer was wrong.

SAM trains with rounds in which a further click corrects the mask of the clicks before it, inside or outside of the
object.  That is not defined here: a prompt is one click or one box, there is no click that says "not this", and a click
has six answers, not one that a second click could correct.  What is kept of it is where the clicks fall: each is drawn
from what the best answer of the last round missed of the region that was asked for, and is a prompt of its own whose
one target is that region.  The model thus sees the clicks that it fails on more often than chance would show them.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from semsam.data.prompts import CLICK_RADIUS
from semsam.data.randomness import random_key
from semsam.data.sample import Batch
from semsam.losses.targets import Targets
from semsam.model.predictions import Predictions
from semsam.ops.keyed_random import keyed_uniform


def in_rounds(batch: Batch, num_rounds: int) -> Batch:
    """The batch with its prompts once for every round; those after the first have the region asked for as only target.

    Where they will click is not known before the model has answered: they hold the places of the first round.
    """
    if num_rounds == 1:
        return batch
    again = np.full_like(batch.prompt_targets, -1)
    again[..., 0] = batch.prompt_asked
    return replace(
        batch,
        prompt_boxes_cxcywh=np.tile(batch.prompt_boxes_cxcywh, (1, num_rounds, 1)),
        prompt_is_box=np.tile(batch.prompt_is_box, (1, num_rounds)),
        prompt_valid=np.tile(batch.prompt_valid, (1, num_rounds)),
        prompt_targets=np.concatenate([batch.prompt_targets, *[again] * (num_rounds - 1)], axis=1),
        prompt_asked=np.tile(batch.prompt_asked, (1, num_rounds)),
    )


@torch.no_grad()
def next_clicks(
    last: Predictions,
    boxes_cxcywh: Float[Tensor, "b n 4"],
    is_box: Bool[Tensor, "b n"],
    targets: Targets,
    seed: int,
    number: int,
) -> tuple[Float[Tensor, "b n 4"], Bool[Tensor, "b n"]]:
    """The prompts of round `number` (the first, whose prompts come with the sample, is 0), and which are boxes.

    `targets` are those of a batch `in_rounds`; `last` answers the prompts of the round before, `boxes_cxcywh`.  Of its
    levels the one that overlaps most with the region counts; a click is a random pixel of the region outside of it, and
    any pixel of the region where nothing is missed.  Pixels are looked at where predictions are, every fourth, from a
    corner drawn for the sample.  A prompt for a region that has no such pixel, or no mask at all, is asked once more.
    """
    height, width = last.mask_features.shape[2:]
    full_height, full_width = targets.labels.height, targets.labels.width
    stride = full_height // height
    keys = [random_key(seed, sample, "prompts", layer=number) for sample in targets.samples]
    n = is_box.shape[1]
    asked = targets.prompt_targets[:, number * n : (number + 1) * n, 0]
    luck = keyed_uniform(torch.tensor(keys, device=is_box.device), height * width + n).T
    new_boxes, still_box = boxes_cxcywh.clone(), is_box.clone()
    for i, key in enumerate(keys):
        top, left = key % stride, key // stride % stride
        truth = _masks_of(asked[i], targets, i, top, left, stride)
        missed = truth & ~_best_masks(last, i, truth)
        # One number for each pixel, turned by another for each prompt: two prompts for a region click differently.
        turned = (luck[i, : height * width] + luck[i, height * width :, None]) % 1
        place = (turned + truth + missed).argmax(1)
        x, y = place % width * stride + left, place // width * stride + top
        side = torch.full_like(x, 2 * CLICK_RADIUS)
        clicks = torch.stack([x / full_width, y / full_height, side / full_width, side / full_height], dim=1)
        found = truth.any(1)
        new_boxes[i] = torch.where(found[:, None], clicks.to(new_boxes.dtype), new_boxes[i])
        still_box[i] &= ~found
    return new_boxes, still_box


def _masks_of(
    regions: Int64[Tensor, " n"], targets: Targets, image: int, top: int, left: int, stride: int
) -> Bool[Tensor, "n p"]:
    """Regions of an image at every `stride`-th pixel; nothing for padding (-1) and for regions without mask."""
    labels = targets.labels.image(image)[top::stride, left::stride].flatten()
    place = regions.clamp(min=0)
    teaches = (regions >= 0) & targets.teaches_mask[image][place]
    return ((targets.tables[image].index_select(1, place) > 0)[labels] & teaches).T


def _best_masks(last: Predictions, image: int, truth: Bool[Tensor, "n p"]) -> Bool[Tensor, "n p"]:
    """Of each prompt's predicted masks the one with the greatest overlap."""
    with torch.autocast(truth.device.type, enabled=False):
        logits = last.mask_embeddings[image].float() @ last.mask_features[image].float().flatten(1)
    masks = (logits > 0).unflatten(0, (len(truth), -1))
    shared = (masks & truth[:, None]).sum(2)
    best = (shared / (masks | truth[:, None]).sum(2).clamp(min=1)).argmax(1)
    return masks[torch.arange(len(best), device=best.device), best]
