"""The simulated board: the core as a shared object, its memory and link in C++."""
from .board import COUNTERS, SimBoard, SimulationError

__all__ = ["COUNTERS", "SimBoard", "SimulationError"]
