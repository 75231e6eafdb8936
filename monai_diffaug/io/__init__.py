"""Files in and out, with what was done to them written beside."""
