"""Queries without a prompt: the encoder's most promising tokens (two-stage selection, arXiv 2206.02777)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from semsam.model.heads import MLP
from semsam.model.pixel_decoder import ImageFeatures
from semsam.model.positions import inverse_sigmoid, pixel_centres

SMALLEST_ANCHOR = 0.05  # Side of the first guess on the finest map, in fractions of the image; it doubles map by map.


@dataclass(frozen=True)
class Proposals:
    """The chosen tokens, with gradients to the encoder; queries start from them detached."""

    content: Float[Tensor, "b q c"]
    boxes_cxcywh: Float[Tensor, "b q 4"]
    objectness: Float[Tensor, "b q"]


class ProposalHead(nn.Module):
    """Scores every token by one number, whatever the vocabulary, and gives the best ones a box.

    The number is learnt as a part of the chosen tokens' name logits: what is called nothing sinks.
    """

    def __init__(self, dim: int, num_queries: int) -> None:
        super().__init__()
        self.num_queries = num_queries
        self.transform = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim)
        self.objectness = nn.Linear(dim, 1)
        self.box = MLP((dim, dim, dim, 4))
        nn.init.xavier_uniform_(self.transform.weight)
        nn.init.zeros_(self.transform.bias)
        nn.init.zeros_(self.objectness.bias)
        nn.init.zeros_(self.box.last.weight)

    def forward(self, features: ImageFeatures) -> Proposals:
        """The best `num_queries` tokens of each image, best first; all of them where there are fewer."""
        tokens = torch.cat([level.flatten(2).transpose(1, 2) for level in features.levels], dim=1)
        tokens = self.norm(self.transform(tokens))
        objectness = self.objectness(tokens)[..., 0].float()
        chosen = objectness.detach().topk(min(self.num_queries, tokens.shape[1]), dim=1).indices
        content = tokens.gather(1, chosen[..., None].expand(-1, -1, tokens.shape[2]))
        anchors = self._anchors(features)[chosen]
        boxes = (self.box(content).float() + inverse_sigmoid(anchors)).sigmoid()
        return Proposals(content, boxes, objectness.gather(1, chosen))

    def _anchors(self, features: ImageFeatures) -> Float[Tensor, "s 4"]:
        shapes = [(level.shape[2], level.shape[3]) for level in features.levels]
        centres = pixel_centres(shapes, features.mask_features.device)
        sides = [centres.new_full((h * w, 2), SMALLEST_ANCHOR * 2**index) for index, (h, w) in enumerate(shapes)]
        return torch.cat([centres, torch.cat(sides)], dim=1)
