"""Task declarations."""
