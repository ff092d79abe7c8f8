"""Meadowlark from Python: a model by name, what it runs on, and text.

    >>> import meadowlark as ml
    >>> model = ml.load("stories")
    >>> with model.on("golden") as chip:
    ...     for piece in chip.stream("Once upon a time", max_tokens=8):
    ...         print(piece, end="")
    , there was a little boy named Sam

The model is read and compiled when it is first needed, and only once for each board. Everything
that can be put right raises :class:`meadowlark.UserError`, whose text is a sentence about it.
"""
from importlib import import_module
from typing import TYPE_CHECKING, Any

from .chip import Chip
from .forecast import Forecast
from .model import LoadedModel, load
from .results import Completion, Message, Options, Prompt, Step

if TYPE_CHECKING:
    from ..run.classify import Classification, Classified
    from ..run.timeline import Timeline
    from ..run.waves import Waves
    from .bitstream import build

__all__ = ["Chip", "Classification", "Classified", "Completion", "Forecast", "LoadedModel",
           "Message", "Options", "Prompt", "Step", "Timeline", "Waves", "build", "load"]
#: Where the rest is, which takes longer to import.
_LATER = {"Classification": "..run.classify", "Classified": "..run.classify",
          "Timeline": "..run.timeline", "Waves": "..run.waves", "build": ".bitstream"}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LATER[name], __name__), name)
