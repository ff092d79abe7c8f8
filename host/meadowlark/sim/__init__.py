"""The simulated board: the core as a shared object, its memory and link in C++."""
from .board import COUNTERS, SimBoard, SimulationError
from .build import check_simulation
from .pins import PinBoard, check_pins
from .transport import SimTransport

__all__ = ["COUNTERS", "PinBoard", "SimBoard", "SimTransport", "SimulationError",
           "check_pins", "check_simulation"]
