"""HTML from text that may hold anything: what is not said to be markup is escaped."""

from __future__ import annotations

import base64
import html

_ALONE = frozenset({"img", "meta"})  # Elements without an end.


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def element(name: str, *children: str, **attributes: str | None) -> Markup:
    """An element; `class_` and `aria_sort` are written without what Python asks for, those that are None not at all.

    Children are escaped where they are no `Markup`, values of attributes always.
    """
    said = "".join(
        f' {_attribute(key)}="{html.escape(value)}"' for key, value in attributes.items() if value is not None
    )
    if name in _ALONE:
        return Markup(f"<{name}{said}>")
    return Markup(f"<{name}{said}>{joined(children)}</{name}>")


def joined(children: tuple[str, ...] | list[str]) -> Markup:
    """The children one after the other, each escaped where it is no `Markup`."""
    return Markup("".join(one if isinstance(one, Markup) else html.escape(one) for one in children))


def image(picture: bytes, description: str, **attributes: str | None) -> Markup:
    """A picture, PNG or JPEG, that is part of the page."""
    kind = "jpeg" if picture.startswith(b"\xff\xd8") else "png"
    data = base64.b64encode(picture).decode()
    return element("img", src=f"data:image/{kind};base64,{data}", alt=description, **attributes)


def _attribute(name: str) -> str:
    return name.rstrip("_").replace("_", "-")
