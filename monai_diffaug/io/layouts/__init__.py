"""How data sets lie in folders: NIfTI, BIDS, nnU-Net's raw data, a datalist. Read for import, written by expand."""

from .kinds import cases, kind_of
from .writing import FORMATS, check_format, write

__all__ = ["FORMATS", "cases", "check_format", "kind_of", "write"]
