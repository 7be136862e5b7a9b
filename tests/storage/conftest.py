"""What the tests of storage share: a cache of their own, and a silent watch."""

from tests.data.conftest import own_cache, watch

__all__ = ["own_cache", "watch"]
