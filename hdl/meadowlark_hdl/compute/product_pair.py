"""Two multipliers and the adder behind them: two MULT18X18D and their ALU54B on an ECP5."""
from amaranth import Cat, ClockSignal, Const, Instance, Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from .multiplier import Multiplier

#: Registers of a cell, all on CLK0.
_MULTIPLIER = ("INPUTA", "INPUTB", "PIPELINE")
_ADDER = ("INPUTC0", "INPUTC1", "OPCODEOP0_0", "OPCODEOP0_1", "OPCODEOP1_0", "OPCODEOP1_1",
          "OPCODEIN_0", "OPCODEIN_1", "OUTPUT0", "OUTPUT1", "FLAG")


class ProductPair(wiring.Component):
    """``r = a0 * b0 + (0 if broadcast else a1 * b1) + (c if keep else 0)``, modulo 2**36.

    Source: nextpnr's ``pack_dsps`` for the wiring between the cells; the opcode and its registers
    are those of public designs made with Lattice's tools, not checked against Lattice's guide
    (TN1267) or on hardware. nextpnr times no path to or from an ALU54B: only a register should
    stand before ``c``, ``broadcast`` and ``keep`` and behind ``r``.
    Timing: ``LATENCY`` cycles, a result a cycle, never stalls; ``c`` comes ``C_CYCLE`` cycles after
    its factors. No reset: the first results after power-up mean nothing.

    Parameters
    ----------
    dsp : str
        "generic": registers, ``*`` and ``+``. "ecp5": the cells, with all their registers in use.

    Members
    -------
    a0, b0, a1, b1 : In(signed(18))
    broadcast, keep : In(1)     With the factors.
    c : In(signed(36))
    r : Out(signed(36))
    """

    LATENCY = Multiplier.LATENCY
    C_CYCLE = 1

    def __init__(self, *, dsp: str = "generic"):
        if dsp not in ("generic", "ecp5"):
            raise ValueError(f"dsp must be generic or ecp5, not {dsp!r}")
        self.dsp = dsp
        super().__init__({name: In(signed(18)) for name in ("a0", "b0", "a1", "b1")} | {
            "broadcast": In(1), "keep": In(1), "c": In(signed(36)), "r": Out(signed(36))})

    def elaborate(self, platform):
        m = Module()
        if self.dsp == "generic":
            self._behave(m)
        else:
            self._instantiate(m)
        return m

    def _behave(self, m: Module) -> None:
        def reg(value, name):
            register = Signal.like(value, name=name, reset_less=True)
            m.d.sync += register.eq(value)
            return register
        products = []
        for k, (a, b) in enumerate(((self.a0, self.b0), (self.a1, self.b1))):
            products.append(reg(reg(a, f"a{k}_reg") * reg(b, f"b{k}_reg"), f"product{k}"))
        c = reg(self.c, "c_reg")
        broadcast, keep = (reg(reg(bit, f"{bit.name}_in"), f"{bit.name}_pipe")
                           for bit in (self.broadcast, self.keep))
        m.d.sync += self.r.eq(products[0] + Mux(broadcast, 0, products[1]) + Mux(keep, c, 0))

    def _instantiate(self, m: Module) -> None:
        def registers(names):
            clocked = {f"p_REG_{name}_CLK": "CLK0" for name in names}
            return clocked | {"p_GSR": "DISABLED", "p_RESETMODE": "SYNC", "i_CLK0": ClockSignal(),
                              "i_CE0": 1, "i_RST0": 0}

        def bus(prefix, value, first=0):
            return {f"{prefix}{first + i}": bit for i, bit in enumerate(value)}

        inputs = {}
        for k, (a, b) in enumerate(((self.a0, self.b0), (self.a1, self.b1))):
            product, sign = Signal(36, name=f"p{k}"), Signal(name=f"signed{k}")
            a_out, b_out = Signal(18, name=f"a{k}_out"), Signal(18, name=f"b{k}_out")
            m.submodules[f"mul{k}"] = Instance(
                "MULT18X18D", **registers(_MULTIPLIER), p_SOURCEB_MODE="B_SHIFT",
                i_SIGNEDA=1, i_SIGNEDB=1, i_SOURCEA=0, i_SOURCEB=0, **bus("i_A", a),
                **bus("i_B", b), **bus("o_P", product), **bus("o_ROA", a_out),
                **bus("o_ROB", b_out), o_SIGNEDP=sign)
            side = "AB"[k]
            inputs |= {**bus(f"i_M{side}", product), **bus(f"i_{side}", a_out),
                       **bus(f"i_{side}", b_out, 18), f"i_SIGNEDI{side}": sign}
        # Opcode: 0100 A + B + C in bits 10..7; C 000 zero, 011 input C in 6..4; B 01 product,
        # 11 zero in 3..2; A 01 product in 1..0.
        opcode = [1, 0, 1, self.broadcast, self.keep, self.keep, 0, 0, 0, 1, 0]
        # Of R only the lower 36 bits count, so C needs no sign above them.
        m.submodules.alu = Instance(
            "ALU54B", **registers(_ADDER), **inputs, **bus("i_OP", opcode),
            **bus("i_C", Cat(self.c, Const(0, 18))), **bus("o_R", self.r))
