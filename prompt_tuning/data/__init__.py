"""Tasks, sources, cache, batch plan and loader."""
