"""Methods that teach a backbone something new (survey section 4.2)."""
