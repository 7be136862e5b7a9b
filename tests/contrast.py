"""The contrast of colours as WCAG 2.2 defines it; text of level AA has at least 4.5."""

from __future__ import annotations

from typing import Any

import numpy as np

TEXT = 4.5


def mixed(color: Any, paper: Any, share: float) -> Any:
    """A colour [red, green, blue] laid over another with this opacity."""
    return share * np.asarray(color, float) + (1 - share) * np.asarray(paper, float)


def contrast(one: Any, other: Any) -> float:
    """The contrast ratio of two colours [red, green, blue] from 0 to 255."""
    lighter, darker = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def _luminance(color: Any) -> float:
    share = np.asarray(color) / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])
