"""Growing a data set (survey section 4.2.4)."""
