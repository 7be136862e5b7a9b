"""Mojibake: text that was decoded with a wrong encoding, such as `Ã¤` for `ä`, and its repair."""

from __future__ import annotations

import re

_WRONG = "\u0080-\u058f\u2010-\u25ff\ufb01\ufb02"
"""What bytes of UTF-8 above 127 become in the encodings that they are mistaken for."""

_SUSPECT = re.compile(rf"[{_WRONG}][{_WRONG} ]|[\u0080-\u009f]")
"""Matches every text that ftfy repairs, and few others: it decides whether ftfy is called."""


def repaired(text: str) -> tuple[str, str]:
    """The text with its encoding repaired line by line, and the first piece that changed, as
    `Ã¤ -> ä`; quotes, entities, widths and accents stay as they are."""
    if text.isascii() or not _SUSPECT.search(text):
        return text, ""
    from ftfy import fix_encoding

    lines = text.split("\n")
    fixed = [fix_encoding(line) if _SUSPECT.search(line) else line for line in lines]
    changed = next(((old, new) for old, new in zip(lines, fixed, strict=True) if old != new), None)
    return ("\n".join(fixed), _difference(*changed)) if changed else (text, "")


def _difference(old: str, new: str) -> str:
    """The first word that differs, before and after."""
    pairs = zip(old.split(), new.split(), strict=False)
    before, after = next(((a, b) for a, b in pairs if a != b), (old[:20], new[:20]))
    return f"{before[:40]} -> {after[:40]}"
