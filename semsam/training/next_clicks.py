"""Further rounds of clicks, each where the last round's answer was wrong.

Every prompt of a later round has one target, the region that was asked for, and the level of the last round that
overlaps most with it is the answer that is corrected.

A model with `further_clicks` is corrected as SAM is (arXiv 2304.02643, appendix A): the next click falls on any pixel
that is wrong, inside the region or outside of it, and says which; the prompt has all its clicks, and in half of the
samples the last answer's mask.  For the released model a prompt is one click or one box, and no click says "not this".
What is left of it there is where the clicks fall: on what was missed of the region, each as a prompt of its own.  The
model thus sees the clicks that it fails on more often than chance would show them.
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
from semsam.model.prompt_encoder import FurtherTokens
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
        missed = truth & ~(_best_answers(last, i, truth)[1] > 0)
        # One number for each pixel, turned by another for each prompt: two prompts for a region click differently.
        turned = (luck[i, : height * width] + luck[i, height * width :, None]) % 1
        place = (turned + truth + missed).argmax(1)
        x, y = place % width * stride + left, place // width * stride + top
        clicks = _click_boxes(x, y, full_width, full_height)
        found = truth.any(1)
        new_boxes[i] = torch.where(found[:, None], clicks.to(new_boxes.dtype), new_boxes[i])
        still_box[i] &= ~found
    return new_boxes, still_box


@torch.no_grad()
def corrections(
    last: Predictions, num_prompts: int, targets: Targets, seed: int, number: int
) -> tuple[FurtherTokens, FurtherTokens]:
    """What each prompt says more in round `number` (the first is 0): a click where it was answered wrongly; its mask.

    `targets` and `last` as in `next_clicks`, and so are the pixels that are looked at.  Nothing is said, which is
    padding, about a region without mask, and no click is made where nothing is wrong.
    """
    height, width = last.mask_features.shape[2:]
    full_height, full_width = targets.labels.height, targets.labels.width
    stride, size = full_height // height, height * width
    asked = targets.prompt_targets[:, number * num_prompts : (number + 1) * num_prompts, 0]
    keys = [random_key(seed, sample, "prompts", layer=number) for sample in targets.samples]
    luck = keyed_uniform(torch.tensor(keys, device=asked.device), size + num_prompts).T
    clicks, masks = [], []
    for i, key in enumerate(keys):
        top, left = key % stride, key // stride % stride
        truth = _masks_of(asked[i], targets, i, top, left, stride)
        best, logits = _best_answers(last, i, truth)
        wrong = truth ^ (logits > 0)
        place = ((luck[i, :size] + luck[i, size:, None]) % 1 + wrong).argmax(1)
        x, y = place % width * stride + left, place // width * stride + top
        is_positive, teaches = truth.gather(1, place[:, None])[:, 0], truth.any(1)
        boxes = _click_boxes(x, y, full_width, full_height)
        clicks.append((boxes, is_positive, teaches & wrong.any(1)))
        shown = teaches & bool(key // stride**2 % 2)
        of_levels = last.boxes_cxcywh[i].float().unflatten(0, (num_prompts, -1))
        masks.append(
            (logits.sigmoid().unflatten(1, (height, width)), of_levels[torch.arange(num_prompts), best], shown)
        )
    boxes, is_positive, valid = (torch.stack(values)[:, :, None] for values in zip(*clicks, strict=True))
    soft, of_masks, shown = (torch.stack(values) for values in zip(*masks, strict=True))
    features = last.mask_features.float()
    return (
        FurtherTokens.of_clicks(boxes, is_positive, valid, features.shape[1]),
        FurtherTokens.of_masks(soft, of_masks, features, shown),
    )


def _masks_of(
    regions: Int64[Tensor, " n"], targets: Targets, image: int, top: int, left: int, stride: int
) -> Bool[Tensor, "n p"]:
    """Regions of an image at every `stride`-th pixel; nothing for padding (-1) and for regions without mask."""
    labels = targets.labels.image(image)[top::stride, left::stride].flatten()
    place = regions.clamp(min=0)
    teaches = (regions >= 0) & targets.teaches_mask[image][place]
    return ((targets.tables[image].index_select(1, place) > 0)[labels] & teaches).T


def _best_answers(
    last: Predictions, image: int, truth: Bool[Tensor, "n p"]
) -> tuple[Int64[Tensor, " n"], Float[Tensor, "n p"]]:
    """Of each prompt's levels the one with the greatest overlap, and its mask before the sigmoid."""
    with torch.autocast(truth.device.type, enabled=False):
        logits = last.mask_embeddings[image].float() @ last.mask_features[image].float().flatten(1)
    logits = logits.unflatten(0, (len(truth), -1))
    masks = logits > 0
    shared = (masks & truth[:, None]).sum(2)
    best = (shared / (masks | truth[:, None]).sum(2).clamp(min=1)).argmax(1)
    return best, logits[torch.arange(len(best), device=best.device), best]


def _click_boxes(x: Int64[Tensor, " n"], y: Int64[Tensor, " n"], width: int, height: int) -> Float[Tensor, "n 4"]:
    """The boxes that stand for clicks on these pixels of an image."""
    side = torch.full_like(x, 2 * CLICK_RADIUS)
    return torch.stack([x / width, y / height, side / width, side / height], dim=1)
