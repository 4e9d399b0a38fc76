"""CLIP's tokenizer: byte-pair encoding of lower-case words (arXiv 1508.07909), from the files of a Hugging Face folder.

vocab.json      {token: id}
merges.txt      a header, then one pair of tokens per line, the pair to merge first at the top
tokenizer.json  holds both, and is read where those two are missing
"""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import orjson

from semsam.storage import Folder

START_TOKEN, END_TOKEN = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"  # A part of every token that ends a word.
CONTRACTIONS = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")  # Words of their own, in this order.
CACHED_WORDS = 100_000


class Tokenizer:
    """Texts to token ids."""

    def __init__(self, ids: Mapping[str, int], merges: Sequence[tuple[str, str]], where: str = "tokenizer") -> None:
        letters = byte_letters()
        needed = [START_TOKEN, END_TOKEN, *letters, *(letter + WORD_END for letter in letters)]
        needed += [a + b for a, b in merges]
        missing = [token for token in needed if token not in ids]
        if missing:
            raise ValueError(f"{where}: the vocabulary lacks {len(missing)} token(s), such as {missing[0]!r}")
        self.start, self.end = ids[START_TOKEN], ids[END_TOKEN]
        self._ids = ids
        self._ranks = {pair: rank for rank, pair in enumerate(merges)}
        self._cache: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without those of its start and end."""
        text = unicodedata.normalize("NFC", text).lower()
        return [token for word in split_words(text) for token in self._encode_word(word)]

    def _encode_word(self, word: str) -> list[int]:
        if word not in self._cache:
            if len(self._cache) == CACHED_WORDS:
                self._cache.clear()
            parts = [byte_letters()[byte] for byte in word.encode()]
            self._cache[word] = [self._ids[part] for part in self._merge([*parts[:-1], parts[-1] + WORD_END])]
        return self._cache[word]

    def _merge(self, parts: list[str]) -> list[str]:
        """The parts after all merges that apply: always the pair of lowest rank, wherever it occurs, left to right."""
        while len(parts) > 1:
            first = min(itertools.pairwise(parts), key=lambda pair: self._ranks.get(pair, len(self._ranks)))
            if first not in self._ranks:
                break
            merged: list[str] = []
            index = 0
            while index < len(parts):
                is_pair = tuple(parts[index : index + 2]) == first
                merged.append("".join(first) if is_pair else parts[index])
                index += 2 if is_pair else 1
            parts = merged
        return parts


def load_tokenizer(folder: str) -> Tokenizer:
    """The tokenizer in a folder, local or `s3://`.  Raises `ValueError` where there is none or it cannot be read."""
    vocabulary, merges = Folder(folder).read_if_there("vocab.json"), Folder(folder).read_if_there("merges.txt")
    if vocabulary is not None and merges is not None:
        where = f"{folder}/vocab.json"
        with _named(where):
            ids = _ids(orjson.loads(vocabulary))
        with _named(f"{folder}/merges.txt"):
            lines = [line for line in merges.decode().split("\n") if line.strip() and not line.startswith("#version")]
            pairs = [_pair(line) for line in lines]
        return Tokenizer(ids, pairs, where)
    both = Folder(folder).read_if_there("tokenizer.json")
    if both is not None:
        where = f"{folder}/tokenizer.json"
        with _named(where):
            content = orjson.loads(both)
            added = {token["content"]: token["id"] for token in content.get("added_tokens", ())}
            ids, pairs = _ids(content["model"]["vocab"] | added), [_pair(one) for one in content["model"]["merges"]]
        return Tokenizer(ids, pairs, where)
    raise ValueError(f"{folder}: no tokenizer: neither vocab.json with merges.txt nor tokenizer.json")


def split_words(text: str) -> Iterator[str]:
    """The words of a text: contractions, runs of letters, single digits, and runs of anything else but spaces."""
    start = 0
    while start < len(text):
        kind = _kind(text[start])
        end = start + 1
        contraction = next((one for one in CONTRACTIONS if text.startswith(one, start)), None)
        if contraction is not None:
            end = start + len(contraction)
        elif kind in ("letter", "other"):
            while end < len(text) and _kind(text[end]) == kind:
                end += 1
        if kind != "space":
            yield text[start:end]
        start = end


def _kind(character: str) -> str:
    if character.isspace():
        return "space"
    return {"L": "letter", "N": "digit"}.get(unicodedata.category(character)[0], "other")


@cache
def byte_letters() -> tuple[str, ...]:
    """The printable character that stands for each byte in the vocabulary: its own, where Latin-1 has one."""
    own = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in own]
    return tuple(chr(byte if byte in own else 256 + others.index(byte)) for byte in range(256))


@contextmanager
def _named(path: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: cannot be read: {error!r}") from None


def _ids(vocabulary: Any) -> dict[str, int]:
    if not isinstance(vocabulary, dict) or not all(type(one) is int and one >= 0 for one in vocabulary.values()):
        raise TypeError("the vocabulary is not a table of numbers by token")
    return vocabulary


def _pair(merge: Any) -> tuple[str, str]:
    parts = merge.split() if isinstance(merge, str) else merge
    if len(parts) != 2 or not all(isinstance(part, str) for part in parts):
        raise TypeError(f"{merge!r} is not a pair of tokens")
    return parts[0], parts[1]
