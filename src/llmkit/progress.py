"""How work reports its progress, whoever shows it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

Say = Callable[[str], None]
"""Prints one human-readable line."""
Advance = Callable[[int], None]
"""Called with each amount of work that is done."""
Watch = Callable[[str, int], AbstractContextManager[Advance]]
"""Opens a piece of work by its label and its total amount, and yields what reports its progress:
called at least about every second, it may raise to stop the work."""
