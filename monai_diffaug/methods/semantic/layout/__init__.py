"""Editing by layout, region and mask (survey section 4.1.3)."""
