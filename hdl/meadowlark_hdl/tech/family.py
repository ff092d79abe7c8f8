"""Chip families by name, for boards: nothing here needs Amaranth.

What runs a board over its bus, on a processor beside the chip, reads board files and has no
gateware tools.
"""
from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .generic import Technology


@dataclass(frozen=True)
class Family:
    """A chip family.

    name: of its module beside this one, and in capitals of its :class:`.generic.Technology` there.
    """
    name: str

    def __repr__(self) -> str:
        return self.name

    @property
    def technology(self) -> Technology:
        """What its chips give; needs Amaranth."""
        return getattr(import_module(f"{__package__}.{self.name}"), self.name.upper())


GENERIC, ECP5, ULTRASCALE = map(Family, ("generic", "ecp5", "ultrascale"))
