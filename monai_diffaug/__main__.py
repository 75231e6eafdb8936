"""`python -m monai_diffaug` is `diffaug`."""

from monai_diffaug.cli import app

if __name__ == "__main__":
    app(prog_name="diffaug")
