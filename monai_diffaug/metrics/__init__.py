"""Measures of what was made, each on features that are passed in."""
