"""The ECP5's PLL, its dividers computed."""
from dataclasses import dataclass

from amaranth import Const, Instance, Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

#: MHz, from the ECP5 and ECP5-5G family data sheet (FPGA-DS-02012), sysCLOCK PLL timing.
PHASE_DETECTOR_MHZ, VCO_MHZ, OUTPUT_MHZ = (3.125, 400), (400, 800), (3.125, 400)


@dataclass(frozen=True)
class Dividers:
    """Output = input / clki * clkfb, VCO = output * clkop; second output = VCO / clkos."""
    clki: int
    clkfb: int
    clkop: int
    clkos: int = 0

    def output_mhz(self, input_mhz: float) -> float:
        return input_mhz / self.clki * self.clkfb

    def second_mhz(self, input_mhz: float) -> float:
        return self.output_mhz(input_mhz) * self.clkop / self.clkos


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


def second_clocks(input_mhz: float, output_mhz: float) -> dict[float, Dividers]:
    """What a PLL makes besides ``output_mhz``, by frequency, slowest first: of each VCO that
    divides to it, all that divides from it; of two VCOs the one nearer to the middle of its range.

    Raises
    ------
    ValueError
        Nothing within 0.5 % of ``output_mhz``.
    """
    first = dividers(input_mhz, output_mhz)
    real, found = first.output_mhz(input_mhz), {}
    vcos = [n for n in range(1, 129) if VCO_MHZ[0] - 1e-6 <= real * n <= VCO_MHZ[1] + 1e-6]
    for clkop in sorted(vcos, key=lambda n: abs(real * n - 600)):
        for clkos in range(1, 129):
            mhz = round(real * clkop / clkos, 6)
            if OUTPUT_MHZ[0] <= mhz <= OUTPUT_MHZ[1]:
                found.setdefault(mhz, Dividers(first.clki, first.clkfb, clkop, clkos))
    return dict(sorted(found.items()))


def beside(input_mhz: float, output_mhz: float, second_mhz: float) -> Dividers:
    """Dividers of a PLL that makes both.

    Raises
    ------
    ValueError
        Nothing within 0.5 % of one of them.
    """
    found = second_clocks(input_mhz, output_mhz)
    nearest = min(found, key=lambda mhz: abs(mhz - second_mhz))
    if abs(nearest / second_mhz - 1) > 0.005:
        near = sorted(sorted(found, key=lambda mhz: abs(mhz - second_mhz))[:4])
        raise ValueError(f"the PLL makes no {second_mhz:g} MHz beside {output_mhz:.5g} MHz; "
                         f"choose another clock, such as {', '.join(f'{x:.5g}' for x in near)}")
    return found[nearest]


class Pll(wiring.Component):
    """Clocks of another one: the core's and the memory's, which may be the same, and a later one.

    Parameters
    ----------
    input_mhz, output_mhz : float
    memory_mhz : float, optional
        Makes this clock as well.
    phase : float, 0..1
        Of a period; in steps of an eighth of the VCO's.

    Members
    -------
    i : In(1)           Clock from a pin.
    o : Out(1)          The clock made of it.
    memory : Out(1)     Only with ``memory_mhz``.
    shifted : Out(1)    ``memory``, or else ``o``, later by ``phase``.
    locked : Out(1)
    """

    def __init__(self, *, input_mhz: float, output_mhz: float, memory_mhz: float | None = None,
                 phase: float):
        self.dividers = dividers(input_mhz, output_mhz) if memory_mhz is None else \
            beside(input_mhz, memory_mhz, output_mhz)
        self.input_mhz, self.phase = input_mhz, phase
        super().__init__({"i": In(1), "o": Out(1), "shifted": Out(1), "locked": Out(1)} | (
            {} if memory_mhz is None else {"memory": Out(1)}))

    def elaborate(self, platform):
        m = Module()
        d = self.dividers
        first, more = self.memory if d.clkos else self.o, {}
        whole, eighths = divmod(round(8 * d.clkop * self.phase), 8)
        outputs = [("CLKOS", d.clkos, self.o, 0, 0)] if d.clkos else []
        outputs += [("CLKOS2", d.clkop, self.shifted, whole, eighths)]
        for name, divider, output, later, part in outputs:
            mhz = d.output_mhz(self.input_mhz) * d.clkop / divider
            more |= {f"p_{name}_ENABLE": "ENABLED", f"p_{name}_DIV": divider,
                     f"p_{name}_CPHASE": divider - 1 + later, f"p_{name}_FPHASE": part,
                     f"a_FREQUENCY_PIN_{name}": f"{mhz:g}", f"i_EN{name}": Const(0),
                     f"o_{name}": output}
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
            i_CLKI=self.i, i_CLKFB=first, i_RST=Const(0), i_STDBY=Const(0), i_PHASESEL0=Const(0),
            i_PHASESEL1=Const(0), i_PHASEDIR=Const(1), i_PHASESTEP=Const(1),
            i_PHASELOADREG=Const(1), i_PLLWAKESYNC=Const(0), i_ENCLKOP=Const(0), o_CLKOP=first,
            o_LOCK=self.locked, **more)
        return m
