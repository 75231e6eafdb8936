"""Counterfactual images (survey section 4.1.5)."""
