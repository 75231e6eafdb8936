"""Adaptation to a domain (survey section 4.2.2)."""
