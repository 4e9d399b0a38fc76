"""Groups of queries against the plain way, attention with a mask over all pairs."""

from __future__ import annotations

import pytest
import torch

from semsam.model.generic_queries import NoisedContent, ProposalHead
from semsam.model.mask_decoder import GroupedSelfAttention, Groups
from semsam.model.pixel_decoder import ImageFeatures

DIM = 16


@pytest.mark.parametrize(
    "groups",
    [
        [Groups(4, 3), Groups(1, 5)],
        [Groups(1, 12), Groups(1, 5)],
        [Groups(0, 3), Groups(1, 5)],
        [Groups(4, 3)],
        [Groups(2, 1), Groups(1, 0)],
    ],
)
def test_groups_equal_attention_with_a_mask(groups: list[Groups]) -> None:
    torch.manual_seed(0)
    grouped = GroupedSelfAttention(DIM, 4)
    plain = torch.nn.MultiheadAttention(DIM, 4, batch_first=True)
    plain.load_state_dict(
        {
            "in_proj_weight": grouped.projection,
            "in_proj_bias": grouped.projection_bias,
            "out_proj.weight": grouped.output.weight,
            "out_proj.bias": grouped.output.bias,
        }
    )
    group_of = [index for index, size in enumerate(g.size for g in groups for _ in range(g.count)) for _ in range(size)]
    own = torch.tensor(group_of)
    queries, positions = torch.randn(2, len(own), DIM), torch.randn(2, len(own), DIM)
    expected, _ = plain(queries + positions, queries + positions, queries, attn_mask=own[:, None] != own)
    torch.testing.assert_close(grouped(queries, positions, groups), expected, rtol=1e-5, atol=1e-5)


def test_a_group_is_divided_in_each_image_by_who_sees_whom() -> None:
    torch.manual_seed(0)
    attention = GroupedSelfAttention(DIM, 4)
    queries, positions = torch.randn(2, 10, DIM), torch.randn(2, 10, DIM)
    own = torch.tensor([[0, 0, 0, 1, 1, 1], [0, 0, 1, 1, 2, 2]])
    found = attention(queries, positions, [Groups(2, 2), Groups(1, 6, own[:, :, None] == own[:, None])])
    for image, sizes in enumerate(([3, 3], [2, 2, 2])):
        one = slice(image, image + 1)
        groups = [Groups(2, 2), *(Groups(1, size) for size in sizes)]
        torch.testing.assert_close(found[one], attention(queries[one], positions[one], groups), rtol=1e-5, atol=1e-5)


def test_content_of_a_denoising_query_is_its_projected_name() -> None:
    content = NoisedContent(DIM, 8)
    torch.nn.init.normal_(content.projection.bias)
    embeddings = torch.randn(5, 8, requires_grad=True)
    found = content(torch.tensor([[4, -1, 0]]), embeddings)
    for place, name in ((0, 4), (2, 0)):
        torch.testing.assert_close(found[0, place], content.projection(embeddings[name]))
    torch.testing.assert_close(found[0, 1], content.projection.bias)
    assert content(torch.tensor([[-1]]), embeddings[:0]).isfinite().all()
    found.sum().backward()
    assert embeddings.grad is None
    assert content.projection.weight.grad is not None


def features(*shapes: tuple[int, int]) -> ImageFeatures:
    random = torch.Generator().manual_seed(0)
    levels = tuple(torch.randn(2, DIM, *shape, generator=random) for shape in shapes)
    return ImageFeatures(torch.zeros(2, DIM, 8, 8), levels, (32, 32))


def test_proposals_are_the_tokens_with_the_highest_score_at_their_own_places() -> None:
    head = ProposalHead(DIM, 5)
    image = features((4, 4), (2, 2))
    found = head(image)
    tokens = torch.cat([level.flatten(2).transpose(1, 2) for level in image.levels], dim=1)
    scores = head.objectness(head.norm(head.transform(tokens)))[..., 0]
    torch.testing.assert_close(found.objectness, scores.sort(descending=True).values[:, :5])
    best = scores.argmax(1)
    for batch, token in enumerate(best.tolist()):
        size, index, side = (4, token, 0.05) if token < 16 else (2, token - 16, 0.1)
        expected = torch.tensor([(index % size + 0.5) / size, (index // size + 0.5) / size, side, side])
        torch.testing.assert_close(found.boxes_cxcywh[batch, 0], expected)


def test_an_image_with_few_tokens_proposes_all_of_them() -> None:
    assert ProposalHead(DIM, 300)(features((4, 4), (2, 2))).content.shape == (2, 20, DIM)
