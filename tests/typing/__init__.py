"""The public API as a user types it, for mypy to read."""
