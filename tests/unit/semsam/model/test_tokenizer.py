"""CLIP's tokenizer on a small vocabulary, whose merges and ids are written here."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semsam.model.text_encoder import ClipTextTransformer, TextSettings
from semsam.model.tokenizer import Tokenizer, byte_letters, load_tokenizer, split_words

# As in CLIP's vocabulary: what a word ends with is another token than the same letters before.
WORDS = {"a</w>": 320, "photo</w>": 1125, "of</w>": 539, "cat</w>": 2368, "dog</w>": 1929, "'s</w>": 568}
MERGES = ["o f</w>", "p h", "o t", "ph ot", "phot o</w>", "a t</w>", "c at</w>", "d o", "do g</w>", "' s</w>"]


def pairs() -> list[tuple[str, str]]:
    return [(first, second) for first, second in (merge.split() for merge in MERGES)]


@pytest.fixture(scope="module")
def vocabulary() -> dict[str, int]:
    """Bytes and words at their places in CLIP's vocabulary; what is between words and bytes, anywhere."""
    # CLIP counts the bytes in the order of the characters that stand for them.
    letters = sorted(byte_letters())
    ids = {letter: index for index, letter in enumerate(letters)}
    ids |= {f"{letter}</w>": 256 + index for index, letter in enumerate(letters)}
    ids |= {first + second: 10_000 + index for index, (first, second) in enumerate(pairs())}
    return ids | WORDS | {"<|startoftext|>": 49_406, "<|endoftext|>": 49_407}


@pytest.fixture(scope="module")
def tokenizer(vocabulary: dict[str, int]) -> Tokenizer:
    return Tokenizer(vocabulary, pairs())


@pytest.fixture
def folder(vocabulary: dict[str, int], tmp_path: Path) -> Path:
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES, ""]))
    return tmp_path


def test_a_text_has_the_ids_that_clip_gives_it(folder: Path) -> None:
    small = TextSettings(dim=8, num_layers=1, num_heads=1, tokenizer=str(folder), pretrained=True)
    tokens = ClipTextTransformer(small).tokenize(["a photo of a cat", "A  Photo\nof a DOG's"])
    assert tokens.tolist() == [
        [49_406, 320, 1125, 539, 320, 2368, 49_407, 49_407],
        [49_406, 320, 1125, 539, 320, 1929, 568, 49_407],
    ]


def test_places_in_the_vocabulary_of_single_bytes(vocabulary: dict[str, int]) -> None:
    assert vocabulary["a</w>"] == 256 + ord("a") - ord("!")  # Known of CLIP: "a" is token 320.
    assert len(set(byte_letters())) == 256


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", []),
        (" \n\t", []),
        ("traffic light", ["traffic", "light"]),
        ("dog's we'll", ["dog", "'s", "we", "'ll"]),
        ("4x4 1990", ["4", "x", "4", "1", "9", "9", "0"]),
        ("stop-sign!?", ["stop", "-", "sign", "!?"]),
        ("!'s", ["!'", "s"]),
        ("'sun 'quoted'", ["'s", "un", "'", "quoted", "'"]),
        ("naïve日本½²_a", ["naïve日本", "½", "²", "_", "a"]),
    ],
)
def test_words_are_cut_where_clip_cuts_them(text: str, words: list[str]) -> None:
    assert list(split_words(text)) == words


def test_merges_apply_in_their_order_and_to_every_place(vocabulary: dict[str, int]) -> None:
    ids = {token: index for index, token in enumerate([*vocabulary, "aa", "aaa</w>", "aaaa", "ba", "aa</w>"])}
    assert Tokenizer(ids, [("a", "a")]).encode("aaaaab") == [ids["aa"], ids["aa"], ids["a"], ids["b</w>"]]
    assert Tokenizer(ids, [("b", "a"), ("a", "a")]).encode("baab") == [ids["ba"], ids["a"], ids["b</w>"]]
    assert Tokenizer(ids, [("a", "a"), ("b", "a")]).encode("baab") == [ids["b"], ids["aa"], ids["b</w>"]]


@settings(max_examples=50)
@given(st.text(max_size=30))
def test_any_text_is_tokens_that_spell_it(tokenizer: Tokenizer, vocabulary: dict[str, int], text: str) -> None:
    spelling = {number: token for token, number in vocabulary.items()}
    letters = "".join(spelling[token].removesuffix("</w>") for token in tokenizer.encode(text))
    spelt = bytes(byte_letters().index(letter) for letter in letters).decode()
    assert spelt == "".join(unicodedata.normalize("NFC", text).lower().split())


def test_a_folder_of_either_kind_is_read(folder: Path, vocabulary: dict[str, int], tokenizer: Tokenizer) -> None:
    text = "a photo of a dog's cat, é"
    assert load_tokenizer(str(folder)).encode(text) == tokenizer.encode(text)
    special = {name: vocabulary[name] for name in ("<|startoftext|>", "<|endoftext|>")}
    model = {"vocab": {k: v for k, v in vocabulary.items() if k not in special}, "merges": [*map(list, pairs())]}
    added = [{"content": name, "id": id_} for name, id_ in special.items()]
    (folder / "merges.txt").unlink()
    (folder / "tokenizer.json").write_text(json.dumps({"model": model, "added_tokens": added}))
    assert load_tokenizer(str(folder)).encode(text) == tokenizer.encode(text)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("vocab.json", "{", "cannot be read"),
        ("vocab.json", '{"a": 1}', r"the vocabulary lacks \d+ token\(s\), such as '<\|startoftext\|>'"),
        ("vocab.json", "[1]", "vocab.json: cannot be read"),
        ("vocab.json", '{"a": "1"}', "vocab.json: cannot be read"),
        ("vocab.json", '{"a": null}', "vocab.json: cannot be read"),
        ("merges.txt", "#version: 0.2\na b c", "merges.txt: cannot be read.*'a b c' is not a pair"),
        ("merges.txt", "#version: 0.2\nq q", r"lacks 1 token\(s\), such as 'qq'"),
    ],
)
def test_a_file_that_cannot_be_meant_is_refused(folder: Path, name: str, content: str, message: str) -> None:
    (folder / name).write_text(content)
    with pytest.raises(ValueError, match=f"{folder}.*{message}"):
        load_tokenizer(str(folder))


def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{tmp_path}: no tokenizer"):
        load_tokenizer(str(tmp_path))
