"""Methods made for one field of use (survey section 4.3)."""
