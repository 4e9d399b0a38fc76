"""Names: unit length, told apart, alike in any batch; random transformer weights are said loudly."""

from __future__ import annotations

import pytest
import torch

from semsam.data.vocabularies import TEMPLATES
from semsam.model.semantic_sam import SemanticSam
from semsam.model.text_encoder import ClipTextTransformer, TextEncoder, TextSettings

NAMES = ("car", "cars", "dog", "traffic light", "é")
CLIP = TextSettings(kind="clip", dim=16, num_layers=2, num_heads=2, context=24, pretrained=True)


@pytest.fixture(params=[TextSettings(kind="byte_ngrams", dim=64), CLIP], ids=["bytes", "clip"])
def encoder(request: pytest.FixtureRequest) -> TextEncoder:
    torch.manual_seed(0)
    return TextEncoder(request.param).eval()


@pytest.mark.parametrize("template", [None, 0, 7])
def test_embeddings_have_unit_length(encoder: TextEncoder, template: int | None) -> None:
    embeddings = encoder(NAMES, template)
    assert embeddings.shape == (len(NAMES), encoder.settings.dim)
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(len(NAMES)))


def test_a_name_is_embedded_alike_in_any_batch(encoder: TextEncoder) -> None:
    together = encoder(NAMES, 0)
    for index, name in enumerate(NAMES):
        torch.testing.assert_close(together[index : index + 1], encoder([name], 0), rtol=1e-5, atol=1e-5)


def test_names_are_told_apart_and_common_parts_bring_them_together() -> None:
    torch.manual_seed(0)
    cosines = (embeddings := TextEncoder(TextSettings(kind="byte_ngrams", dim=64))(NAMES)) @ embeddings.t()
    assert cosines[~torch.eye(len(NAMES), dtype=torch.bool)].max() < 0.95
    assert cosines[0, 1] > cosines[0, 2]


def test_without_a_template_the_result_is_the_mean_of_all() -> None:
    encoder = TextEncoder(CLIP).eval()
    mean = torch.stack([encoder(["dog"], index) for index in range(len(TEMPLATES))]).mean(0)
    torch.testing.assert_close(encoder(["dog"]), torch.nn.functional.normalize(mean, dim=-1))


def test_tokens_begin_and_end_and_are_cut_at_the_context() -> None:
    tokens = ClipTextTransformer(CLIP).tokenize(["ab", "x" * 100])
    assert tokens.shape == (2, CLIP.context)
    assert tokens[0, :4].tolist() == [49_406, ord("a"), ord("b"), 49_407]
    assert tokens[1, -1] == 49_407


def test_random_transformer_weights_are_said_once() -> None:
    encoder = TextEncoder(TextSettings(dim=16, num_layers=1, num_heads=2))
    with pytest.warns(UserWarning, match="weights are random and its names mean nothing"):
        encoder(["dog"], 0)
    encoder(["dog"], 0)


def test_a_tokenizer_that_cannot_be_read_is_named() -> None:
    settings = TextSettings(dim=16, num_layers=1, num_heads=2, tokenizer="/nowhere", pretrained=True)
    with pytest.raises(ValueError, match=r"text\.tokenizer.*/nowhere"):
        TextEncoder(settings)(["dog"], 0)


def test_no_names_need_no_encoder() -> None:
    assert SemanticSam.untrained("debug").encode_names(()).shape == (0, 64)
