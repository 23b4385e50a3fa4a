"""Generation and rank classification over a task."""
