"""A plug-in for monai-diffaug with one method."""
