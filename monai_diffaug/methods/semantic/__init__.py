"""Methods that change what an image shows (survey section 4.1)."""
