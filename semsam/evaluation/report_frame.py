"""What all reports have in common: the page around what they say."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping

from semsam.evaluation.markup import Markup, element
from semsam.evaluation.report_style import SCRIPT, STYLE

GENERATOR = "semsam report"  # By which a page that may be written over is known.


def framed(title: str, facts: Mapping[str, str], *children: str, config: str) -> str:
    """A page that needs no network and no other file: the title, `facts` that say what ran, all else, the config."""
    body = element(
        "body",
        element("h1", title),
        _facts(facts),
        *children,
        element("h2", "Config", id="config"),
        element("pre", config),
        element("script", Markup(SCRIPT)),
    )
    return f"<!DOCTYPE html>\n{element('html', _head(title), body, lang='en')}\n"


def _head(title: str) -> Markup:
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    # Whatever may have come into the page: a browser fetches nothing for it, and runs no script but the one above.
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    return element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name_="generator", content=GENERATOR),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name_="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        element("style", Markup(STYLE)),
    )


def _facts(facts: Mapping[str, str]) -> Markup:
    return element(
        "dl",
        *(element(tag, text) for pair in facts.items() for tag, text in zip(("dt", "dd"), pair, strict=True)),
        class_="facts",
    )
