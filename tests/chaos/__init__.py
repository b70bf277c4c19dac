"""Faults that are struck at a working fleet, while a server that is never struck counts what became of each task."""
