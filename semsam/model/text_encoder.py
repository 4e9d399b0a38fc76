"""Names to unit vectors: a CLIP-style transformer, or a small encoder on bytes that needs no files at all."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from semsam.data.vocabularies import TEMPLATES
from semsam.model.presets import TextSettings

NGRAM_BUCKETS = 8192
NGRAM_LENGTHS = (2, 3, 4, 5)


class TextEncoder(Protocol):
    """What the model needs of either encoder (both are modules)."""

    def __call__(self, names: Sequence[str], template: int | None) -> Float[Tensor, "x d"]: ...


def text_encoder(settings: TextSettings) -> nn.Module:
    """The encoder that the settings name."""
    return ByteEncoder(settings) if settings.kind == "bytes" else ClipTextEncoder(settings)


class ByteEncoder(nn.Module):
    """The mean of learned vectors of a name's byte n-grams, through an MLP; a thousand names take milliseconds.

    Names that share letters start close to each other, as "table" and "coffee table" should.  Templates are ignored.
    """

    def __init__(self, settings: TextSettings) -> None:
        super().__init__()
        self.ngrams = nn.EmbeddingBag(NGRAM_BUCKETS, settings.width, mode="mean")
        self.hidden = nn.Linear(settings.width, settings.width)
        self.output = nn.Linear(settings.width, settings.embed_dim)

    def forward(self, names: Sequence[str], template: int | None) -> Float[Tensor, "x d"]:
        """Unit vectors, one per name."""
        device = self.output.weight.device
        bags = [_ngram_buckets(name) for name in names]
        starts = torch.tensor([0, *(len(bag) for bag in bags)][:-1]).cumsum(0) if bags else torch.zeros(0).long()
        indices = torch.tensor([bucket for bag in bags for bucket in bag], dtype=torch.long)
        found = self.ngrams(indices.to(device), starts.to(device))
        return F.normalize(self.output(F.gelu(self.hidden(found))).float(), dim=-1)


class ClipTextEncoder(nn.Module):
    """The text transformer of CLIP and UniCL: causal, pre-norm, read at the end-of-text token."""

    def __init__(self, settings: TextSettings) -> None:
        super().__init__()
        self.context = settings.context
        self.tokens = nn.Embedding(settings.vocabulary, settings.width)
        self.positions = nn.Embedding(settings.context, settings.width)
        self.blocks = nn.ModuleList(_ClipBlock(settings.width, settings.heads) for _ in range(settings.layers))
        self.norm = nn.LayerNorm(settings.width)
        self.projection = nn.Linear(settings.width, settings.embed_dim, bias=False)
        nn.init.normal_(self.tokens.weight, std=0.02)
        nn.init.normal_(self.positions.weight, std=0.01)
        self._tokenizer = settings.tokenizer

    def forward(self, names: Sequence[str], template: int | None) -> Float[Tensor, "x d"]:
        """Unit vectors, one per name: of one template's sentence, or (None) of the mean over all templates."""
        if not names:
            return self.projection.weight.new_zeros(0, self.projection.out_features)
        if template is not None:
            return self._encode([TEMPLATES[template].format(name) for name in names])
        sentences = [text.format(name) for name in names for text in TEMPLATES]
        encoded = torch.cat([self._encode(sentences[i : i + 512]) for i in range(0, len(sentences), 512)])
        return F.normalize(encoded.view(len(names), len(TEMPLATES), -1).mean(1), dim=-1)

    def _encode(self, sentences: Sequence[str]) -> Float[Tensor, "s d"]:
        tokens = tokenize(tuple(sentences), self.context, self._tokenizer).to(self.projection.weight.device)
        x = self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.blocks:
            x = block(x)
        # The end-of-text token has the highest id of the vocabulary.
        at_end = self.norm(x)[torch.arange(len(x), device=x.device), tokens.argmax(-1)]
        return F.normalize(self.projection(at_end).float(), dim=-1)


class _ClipBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.linear1 = nn.Linear(width, 4 * width)
        self.linear2 = nn.Linear(4 * width, width)

    def forward(self, x: Float[Tensor, "s t c"]) -> Float[Tensor, "s t c"]:
        s, t, c = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(s, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.output(attended.transpose(1, 2).reshape(s, t, c))
        hidden = self.linear1(self.norm2(x))
        return x + self.linear2(hidden * torch.sigmoid(1.702 * hidden))  # CLIP's approximation of GELU.


def tokenize(sentences: tuple[str, ...], context: int, folder: str | None) -> Int64[Tensor, "s t"]:
    """Token ids, cut and padded to the longest sentence (at most `context`).

    `folder` holds tokenizer files in Hugging Face's form.  Without one every byte is a token: good enough to train from
    random weights, of no use with released ones, and said loudly.
    """
    if folder is not None:
        ids = _tokenizer(folder)(list(sentences), truncation=True, max_length=context, padding=True)["input_ids"]
        return torch.tensor(ids)
    _warn_about_bytes()
    start, end = 256, 257
    rows = [[start, *sentence.encode()[: context - 2], end] for sentence in sentences]
    longest = max(len(row) for row in rows)
    return torch.tensor([row + [0] * (longest - len(row)) for row in rows])


@lru_cache(maxsize=4)
def _tokenizer(folder: str) -> Any:
    try:
        from transformers import CLIPTokenizerFast
    except ImportError:
        raise ValueError(f"text.tokenizer={folder}: reading it needs the package transformers") from None
    return CLIPTokenizerFast.from_pretrained(folder, local_files_only=True)


@lru_cache(maxsize=1)
def _warn_about_bytes() -> None:
    warnings.warn("text.tokenizer is not set: names are encoded byte by byte, with weights of our own", stacklevel=3)


@lru_cache(maxsize=100_000)
def _ngram_buckets(name: str) -> tuple[int, ...]:
    """Hash buckets of all n-grams of a name and of its words, with marks at both ends."""
    found = []
    for word in {name, *name.split()}:
        data = f"^{word}$".encode()
        found += [data[i : i + n] for n in NGRAM_LENGTHS for i in range(len(data) - n + 1)]
        found.append(data)
    return tuple(sorted(zlib.crc32(gram) % NGRAM_BUCKETS for gram in found))
