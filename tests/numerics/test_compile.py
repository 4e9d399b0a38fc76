"""torch.compile of the image encoder: one graph without breaks, and the same features.

For images of one size: `dynamic=False`.  Left to itself torch compiles again for variable sizes when a second size
comes, and takes longer over the sizes of the windows than anybody waits.
"""

from __future__ import annotations

import shutil

import pytest
import torch

from semsam.model.backbone import BackboneSettings
from semsam.model.presets import ModelSettings
from semsam.model.semantic_sam import SemanticSam
from semsam.model.text_encoder import TextSettings

TOLERANCE = 1e-5


@pytest.fixture
def model() -> SemanticSam:
    """One of everything, and a shifted window."""
    torch.manual_seed(0)
    settings = ModelSettings(
        backbone=BackboneSettings(dim=8, depths=(1, 2, 1, 1), num_heads=(1, 1, 1, 1), window=4),
        hidden_dim=32,
        feedforward_dim=32,
        num_heads=2,
        num_points=2,
        encoder_layers=1,
        decoder_layers=1,
        text=TextSettings(kind="byte_ngrams", dim=16),
    )
    return SemanticSam(settings).eval()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("backend", ["eager", "inductor"])
@pytest.mark.filterwarnings("ignore")  # Of the compiler about itself.
def test_a_compiled_image_encoder_gives_the_same_features(model: SemanticSam, backend: str) -> None:
    if backend == "inductor" and shutil.which("g++") is None:
        pytest.skip("torch.compile needs g++ for CPUs")
    image = torch.randint(0, 256, (1, 3, 96, 128), dtype=torch.uint8)
    torch.compiler.reset()
    compiled = torch.compile(model.encode_image, fullgraph=True, dynamic=False, backend=backend)
    with torch.no_grad():
        expected, found = model.encode_image(image), compiled(image)
    assert found.padded_size == expected.padded_size
    for one, other in zip(
        (found.mask_features, *found.levels), (expected.mask_features, *expected.levels), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=TOLERANCE * float(other.abs().max()))
