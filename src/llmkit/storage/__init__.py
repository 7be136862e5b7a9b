"""Files that exist whole or not at all, locks, the cache, results to resume."""
