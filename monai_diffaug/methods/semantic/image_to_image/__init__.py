"""Translation from image to image (survey section 4.1.4)."""
