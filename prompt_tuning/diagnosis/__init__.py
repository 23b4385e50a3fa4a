"""Checks of a configuration before it costs anything, and of a run while it trains."""
