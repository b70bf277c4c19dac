"""Tests against real worker processes."""
