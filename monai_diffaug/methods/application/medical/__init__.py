"""Medical images (survey section 4.3.1)."""
