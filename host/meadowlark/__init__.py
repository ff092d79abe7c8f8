"""What runs on the computer: model readers, compiler, driver, targets, commands."""
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import (Chip, Completion, Forecast, LoadedModel, Options, Step, Timeline, Waves,
                      build, load)
    from .errors import UserError

__all__ = ["Chip", "Completion", "Forecast", "LoadedModel", "Options", "Step", "Timeline",
           "UserError", "Waves", "build", "load"]


def __getattr__(name: str) -> Any:
    """What :mod:`.api` has, once it is asked for: the commands begin sooner without."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(".errors" if name == "UserError" else ".api", __name__), name)
