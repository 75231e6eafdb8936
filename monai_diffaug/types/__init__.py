"""The nouns that everything else is made of.

A backbone is four parts (autoencoder, network, conditioner, schedule). Noise is a pair (alpha, sigma). A denoiser maps
a noisy latent to a pair (x0, eps). A plan is a table of rows; a sampler walks it. Nothing here knows MONAI or
diffusers.
"""

from __future__ import annotations

from .backbone import Autoencoder, Backbone, Conditioner, Network
from .condition import Condition
from .contract import Contract
from .errors import DiffAugError
from .noise import Denoiser, NoiseLevel, Plan, Prediction, Row, Schedule, StepCallback, at_level, current_level
from .results import Concept, Sample, iterate
from .seeds import NoiseSource

__all__ = [
    "Autoencoder",
    "Backbone",
    "Concept",
    "Condition",
    "Conditioner",
    "Contract",
    "Denoiser",
    "DiffAugError",
    "Network",
    "NoiseLevel",
    "NoiseSource",
    "Plan",
    "Prediction",
    "Row",
    "Sample",
    "Schedule",
    "StepCallback",
    "at_level",
    "current_level",
    "iterate",
]
