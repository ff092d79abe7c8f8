"""The ECP5's PLL, its dividers computed."""
from __future__ import annotations

from dataclasses import dataclass

from amaranth import Const, Instance, Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

#: MHz, from the ECP5 and ECP5-5G family data sheet (FPGA-DS-02012), sysCLOCK PLL timing.
PHASE_DETECTOR_MHZ, VCO_MHZ, OUTPUT_MHZ = (3.125, 400), (400, 800), (3.125, 400)


@dataclass(frozen=True)
class Dividers:
    """Output = input / clki * clkfb, VCO = output * clkop."""
    clki: int
    clkfb: int
    clkop: int

    def output_mhz(self, input_mhz: float) -> float:
        return input_mhz / self.clki * self.clkfb


def dividers(input_mhz: float, output_mhz: float) -> Dividers:
    """Dividers of a PLL fed back from its output: the nearest output, then the VCO nearest to the
    middle of its range.

    Raises
    ------
    ValueError
        Nothing within 0.5 % of the wanted frequency.
    """
    found = []
    for clki in range(1, 129):
        if not PHASE_DETECTOR_MHZ[0] <= input_mhz / clki <= PHASE_DETECTOR_MHZ[1]:
            continue
        clkfb = round(output_mhz * clki / input_mhz)
        real = input_mhz / clki * clkfb
        if not (1 <= clkfb <= 80 and OUTPUT_MHZ[0] <= real <= OUTPUT_MHZ[1]):
            continue
        for clkop in range(1, 129):
            if VCO_MHZ[0] <= real * clkop <= VCO_MHZ[1]:
                found.append((round(abs(real / output_mhz - 1), 9), abs(real * clkop - 600), clki,
                              Dividers(clki, clkfb, clkop)))
    best = min(found, default=None, key=lambda item: item[:3])
    if best is None or best[0] > 0.005:
        raise ValueError(f"the PLL makes no {output_mhz:g} MHz of {input_mhz:g} MHz; choose "
                         "another clock")
    return best[3]


class Pll(wiring.Component):
    """One clock from another.

    Parameters
    ----------
    input_mhz, output_mhz : float

    Members
    -------
    i : In(1)           Clock from a pin.
    o : Out(1)          The clock made of it.
    locked : Out(1)
    """

    def __init__(self, *, input_mhz: float, output_mhz: float):
        self.dividers, self.output_mhz = dividers(input_mhz, output_mhz), output_mhz
        self.input_mhz = input_mhz
        super().__init__({"i": In(1), "o": Out(1), "locked": Out(1)})

    def elaborate(self, platform):
        m = Module()
        d = self.dividers
        m.submodules.pll = Instance(
            "EHXPLLL",
            p_PLLRST_ENA="DISABLED", p_INTFB_WAKE="DISABLED", p_STDBY_ENABLE="DISABLED",
            p_DPHASE_SOURCE="DISABLED", p_OUTDIVIDER_MUXA="DIVA", p_OUTDIVIDER_MUXB="DIVB",
            p_OUTDIVIDER_MUXC="DIVC", p_OUTDIVIDER_MUXD="DIVD",
            p_CLKI_DIV=d.clki, p_CLKFB_DIV=d.clkfb, p_CLKOP_DIV=d.clkop, p_CLKOP_ENABLE="ENABLED",
            p_CLKOP_CPHASE=d.clkop - 1, p_CLKOP_FPHASE=0, p_FEEDBK_PATH="CLKOP",
            a_FREQUENCY_PIN_CLKI=f"{self.input_mhz:g}",
            a_FREQUENCY_PIN_CLKOP=f"{d.output_mhz(self.input_mhz):g}",
            a_ICP_CURRENT="12", a_LPF_RESISTOR="8",
            i_CLKI=self.i, i_CLKFB=self.o, i_RST=Const(0), i_STDBY=Const(0), i_PHASESEL0=Const(0),
            i_PHASESEL1=Const(0), i_PHASEDIR=Const(1), i_PHASESTEP=Const(1),
            i_PHASELOADREG=Const(1), i_PLLWAKESYNC=Const(0), i_ENCLKOP=Const(0), o_CLKOP=self.o,
            o_LOCK=self.locked)
        return m
