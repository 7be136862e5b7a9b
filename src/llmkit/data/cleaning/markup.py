"""HTML pages: whether a text is one, and the text in it."""

from __future__ import annotations

import re
from typing import Any

_PAGE = re.compile(r"\s*(?:<\?xml[^>]*>\s*)?<(?:!doctype\s+html|html)\b", re.IGNORECASE)
_TAG = re.compile(r"</(?:p|div|body|span|table|ul|li|h[1-6]|a)>", re.IGNORECASE)
_FEWEST_TAGS = 3
_DENSE = 1 / 400  # closing tags per character of a part of a page


def is_html(text: str) -> bool:
    """Whether a text is an HTML page, or a part of one, rather than text that mentions tags."""
    if _PAGE.match(text):
        return True
    if not text.lstrip().startswith("<"):
        return False
    tags = len(_TAG.findall(text))
    return tags >= _FEWEST_TAGS and tags > _DENSE * len(text)


def text_of_html(page: str) -> str:
    """The main text of an HTML page, without menus and comments; empty if there is none."""
    from trafilatura import extract

    found: Any = extract(page, include_comments=False, favor_recall=True)
    return str(found or "")
