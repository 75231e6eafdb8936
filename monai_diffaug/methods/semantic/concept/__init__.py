"""Putting in, taking out and forgetting concepts (survey section 4.1.1)."""
