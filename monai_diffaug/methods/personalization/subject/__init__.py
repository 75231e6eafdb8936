"""Learning a subject or concept from a few images (survey section 4.2.1)."""
