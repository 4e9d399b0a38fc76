"""Queries without a prompt: the encoder's most promising tokens (two-stage selection, arXiv 2206.02777).

In training, regions with noise on their boxes and names are queries too: to put right what is nearly right is learnt
before the matching of the others has settled (denoising, arXiv 2203.01305).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
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


@dataclass(frozen=True)
class NoisedRegions:
    """Regions of each image with noise on their boxes and names, for `r` queries to restore."""

    boxes_cxcywh: Float[Tensor, "b r 4"]  # Relative to the padded image.
    names: Int64[Tensor, "b r"]  # Positions among the object names followed by the part names; -1: none.
    # Queries of different groups never see each other: one group has each region once.
    groups: Int64[Tensor, "b r"]


class NoisedContent(nn.Module):
    """What a denoising query starts from: its name, in the space of queries."""

    def __init__(self, dim: int, text_dim: int) -> None:
        super().__init__()
        self.projection = nn.Linear(text_dim, dim)
        nn.init.xavier_uniform_(self.projection.weight)
        nn.init.zeros_(self.projection.bias)

    def forward(self, names: Int64[Tensor, "b r"], embeddings: Float[Tensor, "x d"]) -> Float[Tensor, "b r c"]:
        """The queries' content; without a name it is the bias alone."""
        # Detached: what a name means is learnt by recognising it, not by being told it.
        known = F.pad(embeddings.detach(), (0, 0, 1, 0))
        return self.projection(known[names + 1])


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
