"""Lattice ECP5: its DSP blocks and its carry chains as instances, with all their registers."""
from amaranth import Cat, ClockSignal, Const, Instance, Module, Signal

from .cells import GatedAdder, Multiplier, ProductPair
from .ecp5_pll import PHASE_DETECTOR_MHZ, Pll, beside, dividers, second_clocks
from .generic import Technology

#: Registers of a multiplier before its output's.
_MULTIPLIER = ("INPUTA", "INPUTB", "PIPELINE")
_ADDER = ("INPUTC0", "INPUTC1", "OPCODEOP0_0", "OPCODEOP0_1", "OPCODEOP1_0", "OPCODEOP1_1",
          "OPCODEIN_0", "OPCODEIN_1", "OUTPUT0", "OUTPUT1", "FLAG")

#: A LUT of a CCU2C: (A & C) ^ B, and its lower quarter, what is generated: B.
_GATED_SUM = 0x6C6C


def _registers(names):
    """Of a DSP cell, all on CLK0."""
    clocked = {f"p_REG_{name}_CLK": "CLK0" for name in names}
    return clocked | {"p_GSR": "DISABLED", "p_RESETMODE": "SYNC", "i_CLK0": ClockSignal(),
                      "i_CE0": 1, "i_RST0": 0}


def _bus(prefix, value, first=0):
    return {f"{prefix}{first + i}": bit for i, bit in enumerate(value)}


class Ecp5(Technology):
    """Inferred, a product leaves registers of its cell out and takes 3.9 ns."""

    name = "ecp5"
    far_wires = True

    def multiplier(self, m: Module, cell: Multiplier) -> None:
        """One MULT18X18D."""
        registers = {f"p_REG_{r}_{what}": value for r in (*_MULTIPLIER, "OUTPUT")
                     for what, value in (("CLK", "CLK0"), ("CE", "CE0"), ("RST", "RST0"))}
        m.submodules.dsp = Instance(
            "MULT18X18D", p_REG_INPUTC_CLK="NONE", **registers,
            p_GSR="DISABLED", p_RESETMODE="SYNC", p_SOURCEB_MODE="B_SHIFT",
            i_CLK0=ClockSignal(), i_CLK1=0, i_CLK2=0, i_CLK3=0,
            i_CE0=1, i_CE1=1, i_CE2=1, i_CE3=1, i_RST0=0, i_RST1=0, i_RST2=0, i_RST3=0,
            i_SIGNEDA=1, i_SIGNEDB=1, i_SOURCEA=0, i_SOURCEB=0, **_bus("i_A", cell.a),
            **_bus("i_B", cell.b), **_bus("i_C", Const(0, 18)), **_bus("o_P", cell.p))

    def product_pair(self, m: Module, cell: ProductPair) -> None:
        """Two MULT18X18D and the ALU54B beside them, which costs no LUT.

        Source: nextpnr's ``pack_dsps`` for the wiring between the cells; the opcode and its
        registers are those of public designs made with Lattice's tools, not checked against
        Lattice's guide (TN1267) or on hardware. nextpnr times no path to or from an ALU54B.
        """
        inputs = {}
        for k, (a, b) in enumerate(((cell.a0, cell.b0), (cell.a1, cell.b1))):
            product, sign = Signal(36, name=f"p{k}"), Signal(name=f"signed{k}")
            a_out, b_out = Signal(18, name=f"a{k}_out"), Signal(18, name=f"b{k}_out")
            m.submodules[f"mul{k}"] = Instance(
                "MULT18X18D", **_registers(_MULTIPLIER), p_SOURCEB_MODE="B_SHIFT",
                i_SIGNEDA=1, i_SIGNEDB=1, i_SOURCEA=0, i_SOURCEB=0, **_bus("i_A", a),
                **_bus("i_B", b), **_bus("o_P", product), **_bus("o_ROA", a_out),
                **_bus("o_ROB", b_out), o_SIGNEDP=sign)
            side = "AB"[k]
            inputs |= {**_bus(f"i_M{side}", product), **_bus(f"i_{side}", a_out),
                       **_bus(f"i_{side}", b_out, 18), f"i_SIGNEDI{side}": sign}
        # Opcode: 0100 A + B + C in bits 10..7; C 000 zero, 011 input C in 6..4; B 01 product,
        # 11 zero in 3..2; A 01 product in 1..0.
        opcode = [1, 0, 1, cell.broadcast, cell.keep, cell.keep, 0, 0, 0, 1, 0]
        # Of R only the lower 36 bits count, so C needs no sign above them.
        m.submodules.alu = Instance(
            "ALU54B", **_registers(_ADDER), **inputs, **_bus("i_OP", opcode),
            **_bus("i_C", Cat(cell.c, Const(0, 18))), **_bus("o_R", cell.r))

    def gated_adder(self, m: Module, cell: GatedAdder) -> None:
        """CCU2C whose LUTs do the gating as well: Yosys would spend a LUT a bit on it, over 5,000
        on a chip with 128 multipliers."""
        even = cell.width + cell.width % 2
        a, b = cell.a.as_unsigned(), cell.b.as_unsigned()
        a, b = Cat(a, Const(0, even - cell.width)), Cat(b, Const(0, even - cell.width))
        total = Signal(even)
        carry = Const(0, 1)
        for i in range(0, even, 2):
            out = Signal(name=f"carry_{i + 2}")
            pins = {}
            for k in range(2):
                pins |= {f"p_INIT{k}": Const(_GATED_SUM, 16), f"p_INJECT1_{k}": "NO",
                         f"i_A{k}": a[i + k], f"i_B{k}": b[i + k], f"i_C{k}": cell.keep,
                         f"i_D{k}": Const(0, 1), f"o_S{k}": total[i + k]}
            m.submodules[f"bits_{i}"] = Instance("CCU2C", i_CIN=carry, o_COUT=out, **pins)
            carry = out
        m.d.comb += cell.o.eq(total[:cell.width].as_signed())

    def pll(self, *, input_mhz: float, output_mhz: float, memory_mhz: float | None = None,
            phase: float) -> Pll:
        return Pll(input_mhz=input_mhz, output_mhz=output_mhz, memory_mhz=memory_mhz, phase=phase)

    def pll_clock(self, input_mhz: float, output_mhz: float,
                  memory_mhz: float | None = None) -> float:
        if memory_mhz is not None:
            return round(beside(input_mhz, memory_mhz, output_mhz).second_mhz(input_mhz), 6)
        return round(dividers(input_mhz, output_mhz).output_mhz(input_mhz), 6)

    def pll_clocks(self, input_mhz: float, memory_mhz: float | None = None) -> list[float]:
        if memory_mhz is not None:
            return list(second_clocks(input_mhz, memory_mhz))
        return sorted({round(input_mhz / clki * clkfb, 6)
                       for clki in range(1, int(input_mhz / PHASE_DETECTOR_MHZ[0]) + 1)
                       for clkfb in range(1, 81)})


ECP5 = Ecp5()
