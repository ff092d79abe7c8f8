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
from .chip import Chip
from .model import Forecast, LoadedModel, load
from .results import Completion, Message, Prompt, Step

__all__ = ["Chip", "Completion", "Forecast", "LoadedModel", "Message", "Prompt", "Step", "load"]
