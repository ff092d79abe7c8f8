"""The residual of all resident tokens, and the sum of squares of each."""
from amaranth import Array, Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out

from ..lib.collisions import NO_RW_CHECK
from ..config import Config
from ..lib.fanout import near
from ..lib.saturate import beyond, saturate
from ..tech.cells import Multiplier
from .products import product, product_latency, product_ports
from ..lib.pipe import delay, reg


#: Of a block RAM of an ECP5, as 512 words of 36 or fewer and longer ones.
RAM_BITS = 512 * 36


class Residual(wiring.Component):
    """Four banks of block RAM with read-modify-write, and sums of squares beside them.

    Golden: :func:`meadowlark_hdl.compute.norm_golden.add_residual`, ``square`` and
    ``sum_of_squares``, bit-exact.
    Timing: one update a cycle, never stalls. An update is complete, its sum of squares included,
    ``latency(shared_products)`` cycles after it was given: ``LATENCY`` if it has a multiplier of
    its own. With add = 1, updates of the same slot have to be at
    least 4 cycles apart (the loop through the memory of sums); with add = 0, consecutive updates
    belong to one token until the next ``first``. Updates of one value at less than 6 cycles'
    distance do not occur: each is written once an instruction.

    Parameters
    ----------
    config : Config
        ``residual_values`` and ``P`` size the memories: 32 blocks of P token slots at most. With
        ``shared_products`` the multiplier is outside, behind square
        (:class:`.products.ProductPort`).

    Members
    -------
    valid : In(1)
    add : In(1)
        1: value is added to the residual; 0: it replaces the residual.
    first : In(1)
        First value of the token: its sum of squares starts anew.
    word, element : In(range(residual_values / 4)), In(2)
        Where the value lies.
    slot : In(range(32 * P))
        Token slot.
    value : In(signed(32))
    norm : In(1)
        The read ports serve read_word and sum_slot; constant while anything is in flight.
    read_word : In(range(residual_values / 4))
    read : Out(norm_width of signed(27))
        ``READ_LATENCY`` cycles after read_word if these are all 4 values of the word, else
        ``READ_ONE_LATENCY``.
    read_element : In(2)
        With norm_width = 1: which one of the word; add has to be 1.
    sum_slot : In(range(32 * P))
    sum : Out(64)
        ``SUM_LATENCY`` cycles after sum_slot.
    """

    READ_LATENCY = 4        # address register, block RAM, its register, another: banks lie apart
    READ_ONE_LATENCY = 4    # the last is one of four instead
    SUM_LATENCY = 2         # block RAM, register
    SQUARED = 6 + 2 + Multiplier.LATENCY + 1            # cycle in which the square is there
    LATENCY = SQUARED + 3                               # a half of the sum, the other, written

    @classmethod
    def latency(cls, shared: bool) -> int:
        """Cycles with multipliers of its own, or shared ones."""
        return cls.LATENCY + product_latency(shared) - Multiplier.LATENCY

    def __init__(self, config: Config):
        self.config, self.shared = config, config.shared_products
        self.words = config.residual_values // 4
        self.slots = 32 * config.P
        self.width = config.norm_width
        self.squared = self.SQUARED - self.LATENCY + self.latency(self.shared)
        super().__init__({
            "valid": In(1), "add": In(1), "first": In(1), "word": In(range(self.words)),
            "element": In(2), "slot": In(range(self.slots)), "value": In(signed(32)),
            "norm": In(1), "read_word": In(range(self.words)),
            "read": Out(data.ArrayLayout(signed(Config.RESID_BITS), self.width)),
            "sum_slot": In(range(self.slots)), "sum": Out(Config.SUMSQ_BITS),
            **({"read_element": In(2)} if self.width == 1 else {}),
            **product_ports(self.shared, "square")})

    def elaborate(self, platform):
        m = Module()
        bits = Config.RESID_BITS

        # Cycle 1: address; 2: block RAM; 3: its registers; 4: one of four; 5: sum; 6: saturated.
        # A value is read long before it is written again, and written once an instruction.
        new = reg(signed(bits), "new")
        # A bank is cut into what a block RAM holds in all its words, so that there is no choice
        # between block RAMs behind their outputs.
        cut = max(1, RAM_BITS // max(self.words, 512))
        element = self.element if self.width == 4 else Mux(self.norm, self.read_element,
                                                           self.element)
        element = delay(m, element, 3, name="element")
        writing = delay(m, self.valid, 5, name="writing", reset=True)
        writing_word = delay(m, self.word, 5, name="writing_word")
        writing_element = delay(m, element, 2, name="writing_element")
        old = []
        for k in range(4):
            value = reg(signed(bits), f"old_{k}")
            old.append(value)
            # Addresses and an enable of its own for each bank, which is many block RAMs.
            read_word = near(m, Mux(self.norm, self.read_word, self.word), name=f"read_word_{k}")
            write_word = near(m, writing_word, name=f"write_word_{k}")
            write = near(m, writing & (writing_element == k), name=f"write_{k}", reset=True)
            for at in range(0, bits, cut):
                some = value[at:at + cut]
                m.submodules[f"bank{k}_{at}"] = bank = memory.Memory(
                    shape=len(some), depth=self.words, init=[], attrs=NO_RW_CHECK)
                read, port = bank.read_port(), bank.write_port()
                m.d.sync += some.eq(read.data)
                m.d.comb += [read.addr.eq(read_word), port.en.eq(write),
                             port.addr.eq(write_word), port.data.eq(new[at:at + cut])]
        chosen = reg(signed(bits), "chosen")
        m.d.comb += [self.read[k].eq(value) for k, value in enumerate(
            [delay(m, value, 1, name=f"read_{k}") for k, value in enumerate(old)]
            if self.width == 4 else [chosen])]
        with m.If(delay(m, self.add, 3, name="add")):
            m.d.sync += chosen.eq(Array(old)[element])
        with m.Else():
            m.d.sync += chosen.eq(0)
        total = reg(signed(33), "total")        # 27 bits + 32 bits
        m.d.sync += total.eq(chosen + delay(m, self.value, 4, name="value"))
        m.d.sync += new.eq(saturate(total, bits))

        # The square, from the leading 18 bits. 7: how many leading bits are the same; 8: shifted.
        drop5, drop10 = reg(1, "drop5"), reg(1, "drop10")
        new_7, leading = reg(signed(bits), "new_7"), reg(signed(18), "leading")
        m.d.sync += [new_7.eq(new), drop5.eq(beyond(new, 18)), drop10.eq(beyond(new, 23)),
                     leading.eq(Mux(drop10, new_7[10:].as_signed(),
                                    Mux(drop5, new_7[5:].as_signed(), new_7)))]
        small = product(m, self, "square", leading, leading)[:35]       # (-2**17)**2 at most
        drops = delay(m, Cat(drop5, drop10), 1 + product_latency(self.shared), name="drops")
        square = reg(53, "square")                      # (-2**26)**2 at most
        m.d.sync += square.eq(Mux(drops[1], Cat(Const(0, 20), small),
                                  Mux(drops[0], Cat(Const(0, 10), small), small)))

        # Loop of 4 cycles for one slot: address, block RAM, register, sum (then written). Without
        # add, what is read meanwhile does not count. 64 bits are too many for a cycle: the upper
        # half does the same a cycle later, with the lower one's carry.
        half, carry = Config.SUMSQ_BITS // 2, Const(0, 1)
        for k, name in enumerate(("low", "high")):
            m.submodules[f"sums_{name}"] = sums = memory.Memory(
                shape=half, depth=self.slots, init=[], attrs=NO_RW_CHECK)
            read, port = sums.read_port(), sums.write_port()
            at = self.squared + k
            slot = delay(m, self.slot, at - self.SUM_LATENCY, name=f"slot_{name}")
            so_far, running = reg(half, f"so_far_{name}"), reg(half, f"running_{name}")
            from_memory = delay(m, self.add & ~self.first, at, name=f"from_memory_{name}")
            from_running = delay(m, ~self.add & ~self.first, at, name=f"from_running_{name}")
            squared = delay(m, writing, at - 5, name=f"squared_{name}")
            more = delay(m, square[k * half:(k + 1) * half], k, name=f"square_{name}")
            total = Signal(half + 1, name=f"total_{name}")
            m.d.comb += total.eq((so_far & from_memory.replicate(half)
                                  | running & from_running.replicate(half)) + more + carry)
            m.d.sync += so_far.eq(read.data)
            with m.If(squared):
                m.d.sync += running.eq(total)
            carry = reg(1, f"carry_{name}")
            m.d.sync += carry.eq(total[half])
            m.d.comb += [read.addr.eq(Mux(self.norm, self.sum_slot, slot)),
                         self.sum[k * half:(k + 1) * half].eq(so_far),
                         port.en.eq(delay(m, squared, 1, name=f"summed_{name}")),
                         port.addr.eq(delay(m, slot, self.SUM_LATENCY + 1, name=f"at_{name}")),
                         port.data.eq(running)]
        return m
