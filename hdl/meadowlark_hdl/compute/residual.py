"""The residual of all resident tokens, and the sum of squares of each."""
from amaranth import Array, Const, signed
from amaranth.lib import data, memory
from amaranth.lib.wiring import In, Out

from ..config import Config
from ..lib.collisions import NO_RW_CHECK
from ..lib.pipe import Pipe, Piped, Timed, cat, mix, mux, reg
from ..lib.saturate import beyond, saturate
from .products import product, product_ports


#: Of a block RAM of an ECP5, as 512 words of 36 or fewer and longer ones.
RAM_BITS = 512 * 36


class Residual(Piped):
    """Four banks of block RAM with read-modify-write, and sums of squares beside them.

    Golden: :func:`meadowlark_hdl.compute.norm_golden.add_residual`, ``square`` and
    ``sum_of_squares``, bit-exact.
    Timing: one update a cycle, never stalls. An update is complete, its sum of squares included,
    ``latency`` cycles after it was given. With in_order = 0, updates of the same slot have to be at
    least 4 cycles apart (the loop through the memory of sums); with in_order = 1, consecutive
    updates belong to one token until the next ``first``. Updates of one value at less than 6
    cycles' distance do not occur: each is written once an instruction.

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
    in_order : In(1)
        Values come token after token, see above.
    stats : In(1)
        The sum of squares of the slot takes it in; else sums stay.
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
        ``cycles["read"]`` cycles after read_word (and read_element).
    read_element : In(2)
        With norm_width = 1: which one of the word; add has to be 1.
    sum_slot : In(range(32 * P))
    sum : Out(64)
        ``SUM_LATENCY`` cycles after sum_slot.
    """

    SUM_LATENCY = 2         # block RAM, register

    def __init__(self, config: Config):
        self.config, self.shared = config, config.shared_products
        self.words = config.residual_values // 4
        self.slots = Config.PASS_BLOCKS * config.P
        self.width = config.norm_width
        super().__init__({
            "valid": In(1), "add": In(1), "in_order": In(1), "stats": In(1), "first": In(1),
            "word": In(range(self.words)), "element": In(2), "slot": In(range(self.slots)),
            "value": In(signed(32)), "norm": In(1), "read_word": In(range(self.words)),
            "read": Out(data.ArrayLayout(signed(Config.RESID_BITS), self.width)),
            "sum_slot": In(range(self.slots)), "sum": Out(Config.SUMSQ_BITS),
            **({"read_element": In(2)} if self.width == 1 else {}),
            **product_ports(self.shared, "square")})

    def stages(self, pipe: Pipe) -> None:
        bits = Config.RESID_BITS
        valid = pipe.at(0, self.valid, valid=True)
        add, in_order, stats, first, word, element, slot, value = pipe.inputs(
            self.add, self.in_order, self.stats, self.first, self.word, self.element, self.slot,
            self.value)
        if self.width == 1:
            element = mux(self.norm, self.read_element, element)

        # A value is read long before it is written again, and written once an instruction.
        old, write_ports = self._banks(pipe, word)
        chosen = mux(add, mix(lambda element, *old: Array(old)[element], element, *old), 0).reg(
            "chosen", signed(bits))
        read = [value.reg(f"read_{k}") for k, value in enumerate(old)] if self.width == 4 \
            else [chosen]
        pipe.m.d.comb += [self.read[k].eq(value.value) for k, value in enumerate(read)]
        pipe.cycles["read"] = read[0].cycle
        new = mix(saturate, (chosen + value).reg("total"), bits).reg("new", signed(bits))

        written = new.cycle - 1
        for k, ports in enumerate(write_ports):
            # Addresses and an enable of its own for each bank, which is many block RAMs.
            where = word.until(written).near(f"write_word_{k}")
            enable = (valid.until(written) & (element.until(written) == k)).near(f"write_{k}")
            for at, port in ports.items():
                pipe.m.d.comb += [port.en.eq(enable.value), port.addr.eq(where.value),
                                  port.data.eq(new.value[at:at + len(port.data)])]

        # Nothing that follows is reset: what was valid before is in no sum.
        updated = pipe.at(written, (valid & stats).at(written), name="updated")
        self._sums(pipe, updated, in_order, first, slot, self._square(pipe, new))

    def _banks(self, pipe: Pipe, word: Timed) -> tuple[list[Timed], list[dict]]:
        """Four banks: their values, and their write ports by the lowest bit these take.

        A bank is cut into what a block RAM holds in all its words, so that there is no choice
        between block RAMs behind their outputs.
        """
        bits, old, write_ports = Config.RESID_BITS, [], []
        cut = max(1, RAM_BITS // max(self.words, 512))
        for k in range(4):
            where = mux(self.norm, self.read_word, word).near(f"read_word_{k}")
            parts, ports = [], {}
            for at in range(0, bits, cut):
                pipe.m.submodules[f"bank{k}_{at}"] = bank = memory.Memory(
                    shape=min(cut, bits - at), depth=self.words, init=[], attrs=NO_RW_CHECK)
                parts.append(pipe.read(bank.read_port(), where).reg(f"old_{k}_{at}"))
                ports[at] = bank.write_port()
            old.append(cat(*parts).as_signed())
            write_ports.append(ports)
        return old, write_ports

    def _square(self, pipe: Pipe, value: Timed) -> Timed:
        """The square, from the leading 18 bits."""
        drop5, drop10 = mix(beyond, value, 18).reg("drop5"), mix(beyond, value, 23).reg("drop10")
        value = value.reg("unsquared")
        leading = mux(drop10, value[10:].as_signed(), mux(drop5, value[5:].as_signed(), value)).reg(
            "leading", signed(18))
        small = product(pipe, self, "square", leading, leading)[:35]        # (-2**17)**2 at most
        return mux(drop10, cat(Const(0, 20), small), mux(drop5, cat(Const(0, 10), small), small)) \
            .reg("square", 53)                                              # (-2**26)**2 at most

    def _sums(self, pipe: Pipe, updated: Timed, in_order: Timed, first: Timed, slot: Timed,
              square: Timed) -> None:
        """The sum of squares of each slot, and ``sum``.

        The loop of 4 cycles for one slot: address, block RAM, register, sum (then written). In
        order, what is read meanwhile does not count. 64 bits are too many for a cycle: the upper
        half does the same a cycle later, with the lower one's carry.
        """
        m, half, carry = pipe.m, Config.SUMSQ_BITS // 2, Const(0, 1)
        from_memory, from_running = ~in_order & ~first, in_order & ~first
        for k, name in enumerate(("low", "high")):
            m.submodules[f"sums_{name}"] = sums = memory.Memory(
                shape=half, depth=self.slots, init=[], attrs=NO_RW_CHECK)
            port, at = sums.write_port(), square.cycle + k
            address = mux(self.norm, self.sum_slot, slot.until(at - self.SUM_LATENCY))
            so_far = pipe.read(sums.read_port(), address).reg(f"so_far_{name}")
            running = reg(half, f"running_{name}")
            kept = mix(lambda so_far, memory, register, running=running:
                       so_far & memory.replicate(half) | running & register.replicate(half),
                       so_far, from_memory, from_running)
            total = (kept + square[k * half:(k + 1) * half] + carry)[:half + 1]
            with m.If(updated.at(at)):
                m.d.sync += running.eq(total.value)
            carry = total[half].reg(f"carry_{name}")
            m.d.comb += [self.sum[k * half:(k + 1) * half].eq(so_far.value),
                         port.en.eq(updated.at(at + 1)), port.addr.eq(slot.at(at + 1)),
                         port.data.eq(running)]
            pipe.cycles["written"] = at + 2
