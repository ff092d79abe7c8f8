"""AMD UltraScale+: Vivado infers its cells."""
from .generic import Technology


class UltraScale(Technology):
    name = "ultrascale"


ULTRASCALE = UltraScale()
