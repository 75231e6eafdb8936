"""The command `diffaug`. Each module here registers its commands on `app`."""

from importlib import import_module

from monai_diffaug.cli.main import app

__all__ = ["app"]

# as help lists them
_MODULES = "methods images learn export train finetune evaluate utility audit review report import_ plan doctor"

for _module in _MODULES.split():
    import_module(f"monai_diffaug.cli.{_module}")
