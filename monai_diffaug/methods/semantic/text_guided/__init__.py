"""Editing by text (survey section 4.1.2)."""
