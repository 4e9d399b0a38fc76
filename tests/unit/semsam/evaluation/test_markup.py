"""What goes into a page is escaped unless it is markup already."""

from __future__ import annotations

from semsam.evaluation.markup import Markup, element, image, joined


def test_text_is_escaped_and_markup_is_not() -> None:
    odd = "<b>&\"'"
    assert element("p", odd, element("b", "x"), title=odd) == (
        '<p title="&lt;b&gt;&amp;&quot;&#x27;">&lt;b&gt;&amp;&quot;&#x27;<b>x</b></p>'
    )
    assert joined(["<i>", Markup("<i>")]) == "&lt;i&gt;<i>"


def test_attributes_may_have_names_that_python_keeps_for_itself() -> None:
    assert element("th", class_="x", aria_sort=None, http_equiv="y") == '<th class="x" http-equiv="y"></th>'


def test_pictures_are_in_the_page_and_have_no_end() -> None:
    assert image(b"\xff\xd8", "") == '<img src="data:image/jpeg;base64,/9g=" alt="">'
    assert image(b"\x00", "a <dot>") == '<img src="data:image/png;base64,AA==" alt="a &lt;dot&gt;">'
