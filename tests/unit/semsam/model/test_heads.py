"""Heads: boxes start at their references, masks near one half, names are cosines."""

from __future__ import annotations

import math

import pytest
import torch

from semsam.model.heads import INITIAL_BIAS, INITIAL_SCALE, MAX_SCALE, NameClassifier, PredictionHeads

DIM, TEXT_DIM = 64, 16


def test_untrained_predictions_are_sane() -> None:
    torch.manual_seed(0)
    heads = PredictionHeads(DIM, TEXT_DIM)
    queries, boxes, names = torch.randn(2, 7, DIM), torch.rand(2, 7, 4), torch.eye(TEXT_DIM)[:3]
    read = heads(queries, boxes, torch.randn(2, DIM, 4, 5), names, names)
    torch.testing.assert_close(read.boxes_cxcywh, boxes, rtol=1e-4, atol=1e-4)
    assert read.mask_logits().abs().mean() < 1
    assert (read.iou_predictions - 0.5).abs().max() < 1.5
    assert read.object_logits.mean().item() == pytest.approx(INITIAL_BIAS, abs=1.5)


def test_name_logits_are_scaled_cosines() -> None:
    classifier = NameClassifier(DIM, TEXT_DIM)
    queries, names = torch.randn(1, 3, DIM), torch.nn.functional.normalize(torch.randn(5, TEXT_DIM), dim=-1)
    cosines = torch.cosine_similarity(classifier.projection(queries)[0][:, None], names[None], dim=-1)
    torch.testing.assert_close(classifier(queries, names)[0], INITIAL_SCALE * cosines + INITIAL_BIAS)
    assert classifier(queries, names[:0]).shape == (1, 3, 0)


def test_the_scale_of_cosines_is_bounded() -> None:
    classifier = NameClassifier(DIM, TEXT_DIM)
    with torch.no_grad():
        classifier.log_scale.fill_(math.log(MAX_SCALE) + 5)
    logits = classifier(torch.randn(1, 3, DIM), torch.nn.functional.normalize(torch.randn(5, TEXT_DIM), dim=-1))
    assert logits.abs().max() <= MAX_SCALE - INITIAL_BIAS
