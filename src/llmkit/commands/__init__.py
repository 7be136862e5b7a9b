"""One short recipe for each command."""
