"""DICOM in: which files there are, which of them make one volume, their numbers, and nobody's name."""
