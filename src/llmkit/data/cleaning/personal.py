"""Personal data in texts: e-mail and IP addresses and telephone numbers, masked by fixed marks."""

from __future__ import annotations

import re
from ipaddress import ip_address

_EMAIL = re.compile(
    r"(?<![\w.+-])[A-Za-z0-9][A-Za-z0-9._%+-]{0,63}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}\b"
)
_IP4 = re.compile(
    r"(?<![\w.])(?<!version )(?<!Version )(?<!release )(?:\d{1,3}\.){3}\d{1,3}(?!\.?\d)(?!\w)"
)
_IP6 = re.compile(r"(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![\w:])")
_PHONE = re.compile(
    r"(?<![\w.+-])(?:\+\d{1,3}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d{1,4}(?:[ .-]?\d{2,4}){2,4}"
    r"|\(\d{3}\) ?\d{3}[ .-]\d{4}|\d{3}[.-]\d{3}[.-]\d{4})(?![\w-]|\.\d)"
)
_FEWEST_GROUPS = 3  # of an IPv6 address: `a::b` is also written in programs


def mask_personal(text: str) -> tuple[str, dict[str, int]]:
    """The text with `<email>`, `<ip>` and `<phone>` instead of personal data, and how many of
    each."""
    found: dict[str, int] = {}

    def masked(name: str, match: re.Match[str]) -> str:
        if name == "ip" and not _is_address(match[0]):
            return match[0]
        found[name] = found.get(name, 0) + 1
        return f"<{name}>"

    if "@" in text:
        text = _EMAIL.sub(lambda match: masked("email", match), text)
    for name, pattern in (("ip", _IP6), ("ip", _IP4), ("phone", _PHONE)):
        text = pattern.sub(lambda match, name=name: masked(name, match), text)  # type: ignore[misc]
    return text, found


def _is_address(text: str) -> bool:
    if ":" in text and sum(map(bool, text.split(":"))) < _FEWEST_GROUPS:
        return False
    try:
        ip_address(text)
    except ValueError:
        return False
    return True
