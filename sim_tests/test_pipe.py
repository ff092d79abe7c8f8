"""Values that know their cycle: what is mixed belongs together; a block says how long it takes."""
import cocotb
import numpy as np
import pytest
from amaranth import Cat, Module, Signal, signed, unsigned
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out
from bench import simulate, start
from cocotb.triggers import ReadOnly, RisingEdge
from meadowlark_hdl.lib.pipe import Pipe, Piped, cat, delay, mix, mux, struct
from pipelines import through

PAIR = data.StructLayout({"low": signed(5), "high": 3})


class Delays(wiring.Component):
    """Its input 0, 1 and 3 cycles ago, extended by its sign; and a valid bit."""

    def __init__(self):
        super().__init__({"i": In(signed(5)), "valid": In(1), "late": Out(1),
                          **{f"o{k}": Out(signed(8)) for k in (0, 1, 3)}})

    def elaborate(self, platform):
        m = Module()
        for k in (0, 1, 3):
            m.d.comb += getattr(self, f"o{k}").eq(delay(m, self.i, k, name=f"i{k}"))
        m.d.comb += self.late.eq(delay(m, self.valid, 3, name="valid", reset=True))
        return m


class Square(Piped):
    """``o`` = the square of ``i``, out of a table."""

    def __init__(self):
        super().__init__({"i": In(4), "o": Out(8)})

    def stages(self, pipe):
        i, = pipe.inputs(self.i)
        pipe.m.submodules.table = table = memory.Memory(
            shape=8, depth=16, init=[k * k for k in range(16)])
        pipe.give(self, o=pipe.read(table.read_port(), i).reg("o"))


class Sums(Piped):
    """Of values that come by ways of different length; ``offset`` is constant."""

    def __init__(self):
        super().__init__({
            "pair": In(PAIR), "k": In(4), "valid": In(1), "offset": In(4), "swap": In(1),
            "o": Out(signed(12)), "parts": Out(PAIR), "any": Out(1), "less": Out(1),
            "o_valid": Out(1)})

    def stages(self, pipe):
        pair, k, valid = *pipe.inputs(self.pair, self.k), pipe.at(0, self.valid, valid=True)
        pipe.m.submodules.square = square = Square()
        squared = pipe.through(square, i=k).o
        low = pair.low.reg("low").reg("low", signed(6))         # as late as the square
        chosen = mux(self.swap, squared, low)
        total = ((chosen + pair.high) + self.offset).reg("total")
        own = pair.high.near("high")
        pipe.give(self, o=total, less=low < k, any=own.any(),
                  parts=struct(PAIR, low=low[:5].as_signed(), high=own),
                  o_valid=valid & (k != 3))


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def delays(dut):
    rng = np.random.default_rng(cocotb.RANDOM_SEED)
    await start(dut, valid=0)
    values = []
    for k in range(200):
        values.append(int(rng.integers(-16, 16)))
        dut.i.value, dut.valid.value = values[-1], values[-1] & 1
        await ReadOnly()
        for cycles_ago in (0, 1, 3):
            if k >= cycles_ago:
                assert getattr(dut, f"o{cycles_ago}").value.to_signed() == values[k - cycles_ago]
        assert dut.late.value == (values[k - 3] & 1 if k >= 3 else 0)
        await RisingEdge(dut.clk)
    await _forgets(dut, dut.valid, dut.late, 3)


async def _forgets(dut, valid, late, latency):
    """Zeros follow a reset."""
    valid.value = 1
    for _ in range(latency + 1):
        await RisingEdge(dut.clk)
    await ReadOnly()
    assert late.value == 1
    await RisingEdge(dut.clk)
    dut.rst.value = 1
    await RisingEdge(dut.clk)
    dut.rst.value, valid.value = 0, 0
    for _ in range(latency + 1):
        await ReadOnly()
        assert late.value == 0
        await RisingEdge(dut.clk)


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def sums(dut):
    rng = np.random.default_rng(cocotb.RANDOM_SEED)
    latency = Sums().latency
    low, high, k = (rng.integers(a, b, 300) for a, b in ((-16, 16), (0, 8), (0, 16)))
    valid = rng.integers(0, 2, 300)
    for swap in (0, 1):
        await start(dut, offset=9, swap=swap, valid=0)
        o, parts, some, less, o_valid = await through(
            dut, latency, {"pair": low % 32 | high << 5, "k": k, "valid": valid},
            {"o": True, "parts": False, "any": False, "less": False, "o_valid": False})
        np.testing.assert_array_equal(o, (k * k if swap else low) + high + 9)
        np.testing.assert_array_equal(parts, low % 32 | high << 5)
        np.testing.assert_array_equal(some, high != 0)
        np.testing.assert_array_equal(less, low < k)
        np.testing.assert_array_equal(o_valid, valid & (k != 3))
    dut.k.value = 1
    await _forgets(dut, dut.valid, dut.o_valid, latency)


@pytest.mark.parametrize("block", [Delays, Sums])
def test_pipe(block, seed, sim):
    simulate(block(), __name__, seed=seed, sim=sim, testcase=block.__name__.lower())


def test_latencies_are_read():
    """A block's is that of its parts: a table of a block RAM, a register, another."""
    assert Square().cycles == {"o": 2}
    assert Sums().cycles == dict.fromkeys(("o", "less", "any", "parts", "o_valid"), 3)


def _pipe():
    pipe = Pipe(Module())
    return pipe, pipe.at(0, Signal(4, name="a")), pipe.at(2, Signal(4, name="b"))


def test_the_earlier_one_waits():
    _, a, b = _pipe()
    assert (a + b).cycle == (b & a).cycle == mix(Cat, a, 1, b).cycle == cat(a, b).cycle == 2
    assert a.at(0) is a.value and a.at(2) is a.at(2)        # one row of registers
    assert a.at(1).name == "a_1" and a.until(5).cycle == 5
    assert a.reg("c").cycle == a.near("c").cycle == 1
    assert (a == 3).cycle == 0 and repr(b) == "<b in cycle 2>"
    assert mix(Cat, a, b, latency=3).cycle == 5


def test_structures_stay_typed():
    pipe = Pipe(Module())
    pair = pipe.at(0, Signal(PAIR, name="pair"))
    for view in (pair.at(2), pair.reg("p").value, struct(PAIR, low=pair.low, high=pair.high).value):
        assert isinstance(view, data.View) and view.shape() == PAIR
    assert delay(Module(), Signal(PAIR), 2, name="pair").shape() == unsigned(8)
    assert pair.low.value.shape() == pair["low"].at(3).shape() == signed(5)


def test_valid_bits_stay_valid():
    pipe = Pipe(Module())
    valid, other = (pipe.at(0, Signal(), valid=True) for _ in range(2))
    bit = pipe.at(0, Signal())
    for value, stays in (((valid & bit), True), ((bit & valid), True), ((valid | other), True),
                         ((valid | bit), False), (mux(bit, valid, other), True),
                         (mux(valid, bit, other), False), (~valid, False),
                         (valid.reg("v"), True), (valid.until(3), True)):
        assert value.valid == stays and value.at(4).reset_less == (not stays)


def test_not_back_in_time():
    pipe, _, b = _pipe()
    with pytest.raises(ValueError, match="^b is there in cycle 2, not in 1$"):
        b.at(1)
    with pytest.raises(ValueError, match="^cycles must be at least 0, not -1$"):
        delay(Module(), Signal(), -1, name="later")


def test_pipes_do_not_mix():
    (_, a, _), (_, _, b) = _pipe(), _pipe()
    with pytest.raises(ValueError, match="^a, b: cycles of different pipes do not compare$"):
        mix(Cat, a, b)
    with pytest.raises(TypeError):      # nor does a cycle get lost
        Cat(Signal(4), a)
