"""Names become points of a space in which queries are compared with them.

`byte_ngrams` is small and learns from nothing: the encoder of the debug preset.  `clip` is the text transformer of CLIP
and UniCL, whose weights and tokenizer are the user's own files.
"""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from semsam.config import Count, Positive, settings
from semsam.data.vocabularies import TEMPLATES
from semsam.model.tokenizer import Tokenizer, load_tokenizer

NUM_BUCKETS = 4096
MAX_NGRAM = 4
CLIP_VOCABULARY = 49_408
START, END = CLIP_VOCABULARY - 2, CLIP_VOCABULARY - 1
NAMES_AT_ONCE = 256


@settings
class TextSettings:
    """UniCL's and CLIP's text transformer by default."""

    kind: Literal["clip", "byte_ngrams"] = "clip"
    dim: Positive = 512  # Of the embeddings, and inside the encoder.
    num_layers: Count = 12
    num_heads: Positive = 8
    context: Positive = 77
    # A folder with CLIP's tokenizer files, local or s3://; without one, names are read byte by byte.
    tokenizer: str | None = None
    pretrained: bool = False  # False warns that the transformer's weights are random.

    def __post_init__(self) -> None:
        if self.dim % self.num_heads:
            raise ValueError(f"dim {self.dim} must be a multiple of num_heads {self.num_heads}")


class TextEncoder(nn.Module):
    """Embeds names; which network does it is `settings.kind`."""

    def __init__(self, settings: TextSettings) -> None:
        super().__init__()
        self.settings = settings
        self.network: ByteNgramEncoder | ClipTextTransformer
        if settings.kind == "byte_ngrams":
            self.network = ByteNgramEncoder(settings.dim)
        else:
            self.network = ClipTextTransformer(settings)
        self._warned = settings.kind == "byte_ngrams" or settings.pretrained

    def forward(self, names: Sequence[str], template: int | None = None) -> Float[Tensor, "x d"]:
        """An embedding of unit length for each name.

        `template` chooses one of `TEMPLATES` to put every name in; without it the result is the mean of all of them.
        The byte encoder takes names as they are.
        """
        if not self._warned:
            warnings.warn(
                "no pretrained text encoder: unless trained since, its weights are random and its names mean nothing",
                stacklevel=2,
            )
            self._warned = True
        if self.settings.kind == "byte_ngrams":
            return _unit_length(self.network(names))
        if template is not None:
            return self._embed([TEMPLATES[template].format(name) for name in names])
        means = [self._embed([text.format(name) for text in TEMPLATES]).mean(0) for name in names]
        return _unit_length(torch.stack(means))

    def _embed(self, texts: Sequence[str]) -> Float[Tensor, "x d"]:
        chunks = [texts[start : start + NAMES_AT_ONCE] for start in range(0, len(texts), NAMES_AT_ONCE)]
        return torch.cat([_unit_length(self.network(chunk)) for chunk in chunks])


class ByteNgramEncoder(nn.Module):
    """A bag of a name's byte sequences, then a small MLP: names with common parts start out as neighbours."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.ngrams = nn.EmbeddingBag(NUM_BUCKETS, 2 * dim, mode="mean")
        self.norm = nn.LayerNorm(2 * dim)
        self.hidden = nn.Linear(2 * dim, 2 * dim)
        self.output = nn.Linear(2 * dim, dim)

    def forward(self, names: Sequence[str]) -> Float[Tensor, "x d"]:
        """Embeddings of any length."""
        found = [ngram_buckets(name) for name in names]
        device = self.output.weight.device
        starts = np.cumsum([0, *(len(buckets) for buckets in found[:-1])])
        rows = torch.from_numpy(np.concatenate(found)).to(device)
        bags = self.norm(self.ngrams(rows, torch.from_numpy(starts).to(device)))
        return self.output(F.gelu(self.hidden(bags)))


@lru_cache(maxsize=100_000)
def ngram_buckets(name: str) -> np.ndarray:
    """Buckets of all byte sequences of a name up to `MAX_NGRAM`, and of the whole name."""
    text = f"<{name}>".encode()
    lengths = range(1, min(MAX_NGRAM, len(text)) + 1)
    found = [text[start : start + n] for n in lengths for start in range(len(text) - n + 1)]
    return np.array([zlib.crc32(ngram) % NUM_BUCKETS for ngram in [*found, text]], np.int64)


class ClipTextTransformer(nn.Module):
    """Causal transformer (arXiv 2103.00020, section 2.4); a text's embedding is read at its end token."""

    def __init__(self, settings: TextSettings) -> None:
        super().__init__()
        dim = settings.dim
        self.settings = settings
        self._tokenizer: Tokenizer | None = None
        self.tokens = nn.Embedding(CLIP_VOCABULARY, dim)
        self.positions = nn.Embedding(settings.context, dim)
        self.layers = nn.ModuleList(ClipLayer(dim, settings.num_heads) for _ in range(settings.num_layers))
        self.norm = nn.LayerNorm(dim)
        self.projection = nn.Linear(dim, dim, bias=False)
        nn.init.normal_(self.tokens.weight, std=0.02)
        nn.init.normal_(self.positions.weight, std=0.01)
        nn.init.normal_(self.projection.weight, std=dim**-0.5)

    def forward(self, texts: Sequence[str]) -> Float[Tensor, "x d"]:
        """Embeddings of any length."""
        device = self.projection.weight.device
        tokens = self.tokenize(texts).to(device)
        x = self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1], device=device))
        for layer in self.layers:
            x = layer(x)
        # What follows the end token is padding; no earlier token has seen it.
        ends = (tokens == END).int().argmax(1)
        return self.projection(self.norm(x[torch.arange(len(x), device=device), ends]))

    def tokenize(self, texts: Sequence[str]) -> Int64[Tensor, "x t"]:
        """Token ids, cut at the context and filled up with end tokens to the longest text."""
        room = self.settings.context - 2
        if self.settings.tokenizer is None:
            # CLIP's first 256 tokens stand for single bytes.
            rows = [list(text.encode()[:room]) for text in texts]
        else:
            if self._tokenizer is None:
                self._tokenizer = load_clip_tokenizer(self.settings.tokenizer)
            rows = [self._tokenizer.encode(text)[:room] for text in texts]
        longest = max(len(row) for row in rows)
        return torch.tensor([[START, *row, *[END] * (longest - len(row) + 1)] for row in rows])


class ClipLayer(nn.Module):
    """Pre-norm attention over earlier tokens, then an MLP."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, dim * 3)
        self.output = nn.Linear(dim, dim)
        self.mlp_norm = nn.LayerNorm(dim)
        self.expand = nn.Linear(dim, dim * 4)
        self.contract = nn.Linear(dim * 4, dim)

    def forward(self, x: Float[Tensor, "x t d"]) -> Float[Tensor, "x t d"]:
        """The tokens after this layer."""
        qkv = self.qkv(self.attention_norm(x)).unflatten(-1, (3, self.num_heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.output(attended.transpose(1, 2).flatten(2))
        hidden = self.expand(self.mlp_norm(x))
        return x + self.contract(hidden * torch.sigmoid(1.702 * hidden))  # CLIP's approximation of GELU.


def load_clip_tokenizer(folder: str) -> Tokenizer:
    """The tokenizer in a folder; `ValueError` where there is none, or one of another vocabulary than CLIP's."""
    try:
        tokenizer = load_tokenizer(folder)
    except ValueError as error:
        raise ValueError(f"text.tokenizer: {error}") from None
    if (tokenizer.start, tokenizer.end) != (START, END):
        raise ValueError(f"text.tokenizer: {folder}: not CLIP's vocabulary: texts end with token {tokenizer.end}")
    return tokenizer


def _unit_length(embeddings: Float[Tensor, "x d"]) -> Float[Tensor, "x d"]:
    return F.normalize(embeddings.float(), dim=-1)
