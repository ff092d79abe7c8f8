"""The simulated board: the core as a shared object, its memory and link in C++."""
from .board import COUNTERS, SimBoard, SimulationError
from .transport import SimTransport

__all__ = ["COUNTERS", "SimBoard", "SimTransport", "SimulationError"]
