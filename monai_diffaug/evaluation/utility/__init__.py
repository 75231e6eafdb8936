"""Does it help? A downstream network trained with and without synthetic images, and tested on real patients."""

from .run import Forecast, Utility, forecast, utility
from .study import Arm, Study, opened
from .synthetic import Order, Produce

__all__ = ["Arm", "Forecast", "Order", "Produce", "Study", "Utility", "forecast", "opened", "utility"]
