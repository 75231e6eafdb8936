"""The command `diffaug`. Each module here registers its commands on `app`."""

from importlib import import_module

from monai_diffaug.cli.main import app

__all__ = ["app"]

_MODULES = (  # in the order in which help lists them
    *(
        "methods",
        "images",
        "learn",
        "export",
        "train",
        "finetune",
        "evaluate",
        "audit",
        "review",
        "import_",
        "plan",
        "doctor",
    ),
)

for _module in _MODULES:
    import_module(f"monai_diffaug.cli.{_module}")
