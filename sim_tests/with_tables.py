"""A part of the sampler with the tables that it asks, for its bench."""
from amaranth import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In
from meadowlark_hdl.sampler.tables import Tables


class WithTables(wiring.Component):
    """The part's ports but ``tables``.

    Parameters
    ----------
    part : Component
    user : str
        Which user of the tables it is: "urgent" or "other".
    """

    def __init__(self, part: wiring.Component, user: str):
        self.part, self.user = part, user
        ports = dict(part.signature.members)
        del ports["tables"]
        super().__init__(ports)

    def elaborate(self, platform):
        m = Module()
        m.submodules.part = part = self.part
        m.submodules.tables = tables = Tables()
        wiring.connect(m, part.tables, getattr(tables, self.user))
        for name, member in self.signature.members.items():
            inner, outer = getattr(part, name), getattr(self, name)
            m.d.comb += inner.eq(outer) if member.flow == In else outer.eq(inner)
        return m
