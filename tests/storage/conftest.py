"""Each test of storage has a cache of its own."""

from tests.data.conftest import own_cache

__all__ = ["own_cache"]
