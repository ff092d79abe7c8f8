"""Issue: executes instructions, one at a time, as a beat of control a cycle."""
from amaranth import Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from ..config import Config
from ..lib.countdown import Countdown
from ..lib.fanout import fanout, near
from ..isa import Op
from ..signatures import (Beat, FetchedInstruction, InstructionLayout, ModelLayout, PassLayout,
                          ResultPort, RopeWrite, StoreCommand, TileRead)
from ..compute.lane import BEAT_CYCLE, DRAIN_LATER, score_cycle
from ..lib.pipe import delay
from ..compute.tiling_engine import EngineControl, first_result, store_depth


class Issue(wiring.Component):
    """Turns instructions into the array's control and the serial operands of the vector unit.

    An instruction starts when every result of the one before has been written (its pipelines are a
    few tens of cycles; the memory side runs ahead meanwhile). Within an instruction rows follow
    each other without a gap, except that rows with results start at least P cycles apart.
    docs/architecture.md, "Instructions", says what each one does.

    Timing: control, scale_addr, result and rope are registers. From an instruction's turn to its
    first state that waits or works ``START`` cycles, to one that waits from the tile's
    availability ``FRONT``; a tile of LINEAR, QK or SV ``TILE``. LINEAR: ``SEEK`` a block until the
    first one and blocks * rows * max(row_beats, P) cycles a tile. QK: keys * row_beats and
    ``BLOCK`` a block of a tile; SV: sv_cycles times the beats, ACC_TURN cycles a key at least, and
    the drain of a block: max(sum_gap, P) + head_dim * P. EMBED: hidden + ``TOKEN`` a token. ROPE:
    head_dim/2 + ``TOKEN`` a token, and ``ANGLES``. NORM: what the vector unit takes and ``NORM``.
    STORE: row_beats * W / store_bytes a token while the store FIFO has room, and ``STORE``. The
    next one's turn is ``SETTLE`` cycles after the last effect.

    Parameters
    ----------
    config : Config
    sum_gap : int
        Cycles from the start of a kind-1 row to that of the first kind-2 row.

    Members
    -------
    instr : In(stream of FetchedInstruction)
    pass_ : In(PassLayout), model : In(ModelLayout)   Constant while an instruction runs, pass_ from
                                            the cycle before its first one on.
    control : Out(EngineControl)
    tile : Out(TileRead)
    engine_result : In(ResultPort), result : Out(ResultPort)   Joined, one cycle later.
    rope : Out(RopeWrite)
    norm_start : Out(1), norm_done : In(1), gamma_addr : In, gamma : Out(Beat), vector_busy : In(1)
    current : Out(InstructionLayout)        The instruction in execution, for the vector unit.
    lanes, attending : Out                  Lanes it uses; whether it is QK or SV.
    store_cmd : Out(stream of StoreCommand); store_room : In
    pass_end : Out(1)                       One cycle: END executed, everything before it written.
    retired : Out(1)                        One cycle an instruction.
    pc : Out(16)                            Of the instruction in execution.
    bad_op : Out(1)                         High while an instruction with an unknown op stands.
    array_active, wait_tile, wait_vector, wait_store : Out(1)   For the counters.
    """

    START, FRONT, SETTLE = 3, 2, 2
    TILE, SEEK, BLOCK, TOKEN, ANGLES, NORM, STORE = 1, 1, 4, 5, 6, 2, 4

    def __init__(self, config: Config, *, sum_gap: int):
        if sum_gap < 1:
            raise ValueError(f"sum_gap must be at least 1, not {sum_gap!r}")
        self.config = config
        self.sum_row = max(sum_gap, config.P)   # its results leave one a cycle as well
        super().__init__({
            "instr": In(stream.Signature(FetchedInstruction())),
            "pass_": In(PassLayout()), "model": In(ModelLayout),
            "control": Out(EngineControl(config)),
            "tile": Out(TileRead(config)),
            "engine_result": In(ResultPort(config)), "result": Out(ResultPort(config)),
            "rope": Out(RopeWrite(config)),
            "norm_start": Out(1), "norm_done": In(1),
            "gamma_addr": In(range(config.tile_beats)), "gamma": Out(Beat(config)),
            "vector_busy": In(1),
            "current": Out(InstructionLayout),
            # Everything is in use until an instruction says otherwise, so also during a flush.
            "lanes": Out(range(config.P + 1), init=config.P), "attending": Out(1, init=1),
            "store_cmd": Out(stream.Signature(StoreCommand())),
            "store_room": In(range(store_depth(config) + 1)),
            "pass_end": Out(1), "retired": Out(1), "pc": Out(16), "bad_op": Out(1),
            "array_active": Out(1), "wait_tile": Out(1), "wait_vector": Out(1),
            "wait_store": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        config, P, W = self.config, self.config.P, self.config.W
        log2_w, log2_parts = ceil_log2(W), ceil_log2(config.sv_cycles)
        log2_columns, log2_stores = log2_w - log2_parts, ceil_log2(W // config.store_bytes)
        instr, model = Signal(InstructionLayout, reset_less=True), self.model
        m.d.comb += self.current.eq(instr)
        pass_ = Signal(PassLayout(), reset_less=True)       # it comes from across the chip
        m.d.sync += pass_.eq(self.pass_)
        c = self.control
        lane = c.lane

        # Every control bit is 0 unless this cycle sets it; addresses always stand.
        m.d.sync += [c.eq(0), self.norm_start.eq(0), self.rope.valid.eq(0), self.pass_end.eq(0),
                     self.retired.eq(0), self.array_active.eq(0), self.wait_tile.eq(0),
                     self.wait_vector.eq(0), self.wait_store.eq(0)]

        # Most counts are set before they are used. Without a reset the wire of it stays short.
        def reg(*shape):
            return Signal(*shape, reset_less=True, src_loc_at=1)

        half = Signal()                     # of the tile at the front
        tiles_left = reg(15)                # after this one
        row = reg(8)                        # within the tile
        rows_left = Countdown(m, 8, name="rows", behind=True, reset=False)   # keys in QK and SV
        row_end = reg(8)                    # the tile's last one
        row_no = reg(18)                    # within the instruction
        tile_row_no = reg(18)               # row_no of the tile's first row
        beat = Signal(11)
        addr = reg(range(config.tile_beats))  # within the tile
        block = reg(6)
        first_block = reg(6)
        x_block = reg(13)                   # activation address of word x of the block
        x_first = reg(13)                   # the same of the first block
        x_addr = reg(13)
        timer = Signal(range(self.sum_row + 1))     # cycles until a row may start
        may_start = Signal(init=1)          # timer is 0
        tokens_left = Countdown(m, 13, name="tokens", behind=True, reset=False)
        token_lane = reg(range(P))
        last_lane = Signal()                # it is P - 1
        settle = reg(6)
        # Whether a count is at its end: registers, so that no comparison is in a control's way.
        first_beat, last_beat, one_beat = Signal(), Signal(), Signal()
        one_row = Signal()                                  # the tile's only one
        last_tile, final_tile = Signal(), Signal()          # the next one, the one in use
        last_block, first_is_last = Signal(), Signal()
        block_end, beat_before_end = Signal(6), Signal(11)
        blocks_left = reg(6)                # after the first one
        row_steps = reg(11)                 # beats of a row; in SV and STORE their parts
        last_part = Signal()                # of the beat
        # A row of results takes at least P >= 4 cycles, so most ends are known in time.
        m.d.sync += [
            block_end.eq(pass_.nb - 1), last_block.eq(block == block_end),
            last_tile.eq(tiles_left == 1)]

        def begin_row():
            return [beat.eq(0), first_beat.eq(1), last_beat.eq(one_beat)]

        def next_beat_of_row():
            return [beat.eq(Mux(last_beat, 0, beat + 1)), first_beat.eq(last_beat),
                    last_beat.eq(Mux(last_beat, one_beat, beat == beat_before_end))]

        def next_token():
            return [tokens_left.step(), token_lane.eq(Mux(last_lane, 0, token_lane + 1)),
                    last_lane.eq(token_lane == P - 2)]

        def hold_rows(cycles):
            """The next row starts so many cycles from now at the earliest."""
            return [timer.eq(cycles), may_start.eq(cycles == 0)]
        with m.If(timer != 0):
            m.d.sync += hold_rows(timer - 1)

        # Attention
        tile_base = reg(13)                 # position of the tile's first key
        tile_keys = reg(13)
        keys_left = reg(14)                 # keys from the tile's first one on
        position = reg(14)                  # of lane 0's token of the block: pos0 + block * P
        limit = reg(14)                     # keys the block sees
        tile_end = reg(14)                  # tile_base + tile_keys
        keys_end = reg(8)                   # tile_keys - 1
        one_key = reg()                     # it is 0
        unseen_end = reg(8)                 # limit - tile_base - 1, if less than keys_end
        fewer, none = reg(), reg()          # it is; it is 0 or less
        score_block = reg(range(2 * config.score_depth))  # block * ctx
        score_addr = reg(range(2 * config.score_depth))
        age = reg(signed(15))               # key position - position
        last_query = reg(range(P))          # lane of the block's last token, or of the last head
        key = reg(13)
        slot = reg(range(config.acc_slots))     # accumulator slice 0 of the block
        single = reg()                      # all keys are in one tile
        element = reg(10)                   # of the drain
        slot_addr = reg(range(config.acc_slots))
        drains = reg()                      # the block sees its last key in this tile
        last_keys = Signal()                # no keys after this tile
        m.d.sync += last_keys.eq(keys_left == tile_keys)
        # The slices of the next key are those of this one: not sooner than the accumulators allow.
        held = Signal(Config.ACC_TURN - 2)  # a bit for each cycle to wait
        short = Signal()                    # a key has two slices, else ACC_TURN at least

        # What the instruction is, in registers: constant from its second cycle on.
        is_embed, is_rope, is_norm, is_linear, is_qk, is_sv = (
            Signal(name=f"is_{op.name.lower()}") for op in (
                Op.EMBED, Op.ROPE, Op.NORM, Op.LINEAR, Op.QK, Op.SV))
        m.d.sync += [flag.eq(instr.op == op) for flag, op in (
            (is_embed, Op.EMBED), (is_rope, Op.ROPE), (is_norm, Op.NORM),
            (is_linear, Op.LINEAR), (is_qk, Op.QK), (is_sv, Op.SV))]

        # SV and STORE take a beat in parts. EMBED, ROPE and STORE may begin in their second cycle,
        # so whether their rows are of one beat must be a register away from the instruction.
        in_parts = instr.op == Op.SV
        by_store = (instr.op == Op.STORE) if log2_stores else Const(0)
        steps = Mux(in_parts, instr.row_beats << log2_parts,
                    Mux(by_store, instr.row_beats << log2_stores, instr.row_beats))
        m.d.sync += [row_steps.eq(steps), beat_before_end.eq(row_steps - 2),
                     one_beat.eq((instr.row_beats == 1) & ~in_parts & ~by_store),
                     short.eq(is_sv & (row_steps == 2))]
        m.d.comb += last_part.eq(beat[:log2_parts].all() | ~is_sv)
        last_store = beat[:log2_stores].all() if log2_stores else Const(1)

        # Addresses and the like: they count for nothing where no enable goes with them.
        m.d.sync += [
            lane.shift.eq(instr.shift), lane.x_addr.eq(x_addr), lane.dot_keep.eq(~first_beat),
            lane.sel_p.eq(is_sv), c.row.eq(Mux(is_linear, row_no, element)), c.block.eq(block),
            lane.sc_addr.eq(score_addr), lane.sc_block.eq(block), lane.sc_first.eq(key == 0),
            lane.sc_age.eq(Mux(instr.heads | (age < 0), -1, age)), lane.s_addr.eq(score_addr),
            lane.sc_last.eq(last_query),
            lane.m_block.eq(block), lane.sum_block.eq(block), lane.sum_keep.eq(key != 0),
            lane.acc_to.eq(slot_addr), lane.acc_keep.eq(is_sv & (key != 0)),
            lane.dr_sel.eq(element[log2_parts:]), lane.st_lane.eq(token_lane),
            lane.st_part.eq(beat)]
        # Values follow each other in the slices of a beat before they do in a slice.
        to_drain = Cat(element[:log2_parts], slot_addr[log2_parts:])
        m.d.sync += lane.acc_addr.eq(delay(m, to_drain, DRAIN_LATER, name="to_drain"))

        # The joined result: the array's, or a serial element.
        element_valid = Signal()
        element_row = reg(18)
        shift_reg = reg(Beat(config))
        serial = reg(range(W + 1))          # elements still in shift_reg
        next_beat = Signal()                # of the tile, into shift_reg in the next cycle
        out = self.result.payload
        result = reg(out.shape())
        m.d.comb += out.eq(result)
        # The element and what belongs to it, a register nearer to the vector unit.
        element_at = {"acc": shift_reg[0], "lane": token_lane, "row": element_row, "block": block}
        element_at = {name: delay(m, value, 1, name=f"element_{name}")
                      for name, value in element_at.items()}
        element_valid_at = delay(m, element_valid, 1, name="element_valid", reset=True)
        m.d.sync += self.result.valid.eq(self.engine_result.valid | element_valid_at)
        # EMBED's scale stands long before its first element.
        serials = {"kind": Const(0, 2),
                   "scale": delay(m, self.tile.scale, 1, name="element_scale")} | element_at
        for name, value in serials.items():
            given = self.engine_result.payload[name]
            with m.If(near(m, instr.op == Op.EMBED, name=f"serial_{name}")):
                m.d.sync += result[name].eq(value)
            with m.Else():
                m.d.sync += result[name].eq(given)

        # A beat stands in lane 0 in cycle BEAT_CYCLE of its control: address, its register, RAM,
        # its register, lane 0's register. A half is given back in the cycle after its last address.
        array_addr, array_release = Signal(range(2 * config.tile_beats)), Signal(2)
        array_at = delay(m, array_addr, BEAT_CYCLE - 4, name="array_addr")
        array_released = delay(m, array_release, BEAT_CYCLE - 2, name="array_release")
        # Who reads the tile: the vector unit, this block, or the array.
        beat_addr = reg(range(2 * config.tile_beats))       # EMBED and ROPE set it themselves
        with m.If(~(is_embed | is_rope)):
            m.d.sync += beat_addr.eq(Mux(is_norm, Cat(self.gamma_addr, half),
                                         array_at))
        release = Signal(2)
        scale_addr = reg(range(2 * config.tile_rows))
        m.d.sync += [release.eq(0), array_release.eq(0), array_addr.eq(Cat(addr, half)),
                     c.part.eq(Mux(is_sv, beat, 0)),
                     scale_addr.eq(Cat(row[:ceil_log2(config.tile_rows)], half))]
        m.d.comb += [
            self.tile.beat_addr.eq(beat_addr), self.tile.scale_addr.eq(scale_addr),
            self.gamma.eq(self.tile.beat),
            self.tile.release.eq(array_released | release)]
        # Up to three parts of words are on their way to the count.
        with_room = Signal()
        m.d.sync += with_room.eq(self.store_room[2:].any())
        # What the tile buffer says is a cycle old. A half that was given back is not looked at
        # until the other one is done with.
        front, available = Signal(), Signal(2)
        m.d.sync += available.eq(Cat(self.tile.available[k] for k in range(2)))
        m.d.comb += front.eq(Mux(half, available[1], available[0]))

        def release_by_control():
            """Give the front tile back once the array has read the beats presented so far."""
            return [array_release.eq(Mux(half, 2, 1)), half.eq(~half)]

        def release_now():
            return [release.eq(Mux(half, 2, 1)), half.eq(~half)]

        # The vector unit is across the chip: what it says is a cycle old.
        norm_done, vector_busy = Signal(), Signal()
        m.d.sync += [norm_done.eq(self.norm_done), vector_busy.eq(self.vector_busy)]
        flight = first_result(config) + P + 4     # issue -> last result seen
        scored = score_cycle(config) + 1    # issue -> written; SV reads none in its first cycles

        def finish(cycles):
            m.d.sync += settle.eq(cycles)
            m.next = "SETTLE"

        # row_beats = head_dim / W is a power of two
        log2_words = reg(3)
        m.d.sync += [log2_words.eq(model.head_log2 - log2_w),
                     self.store_cmd.payload.addr.eq(instr.addr + (pass_.pos0 << log2_words)),
                     self.store_cmd.payload.chunks.eq(pass_.n << log2_words)]
        m.d.comb += [self.instr.ready.eq(0), self.bad_op.eq(0)]

        # What waits is copied until an instruction starts. ``idle`` is the state's name, once more.
        idle = Signal(init=1)
        with m.If(idle):
            m.d.sync += [
                instr.eq(self.instr.payload.instr), self.pc.eq(self.instr.payload.pc),
                tiles_left.eq(self.instr.payload.instr.tiles),
                token_lane.eq(0), last_lane.eq(0), block.eq(0), tile_base.eq(0), row.eq(0),
                row_no.eq(0), tile_row_no.eq(0), element_row.eq(0),
                x_first.eq(self.instr.payload.instr.x)]
        with m.FSM():
            with m.State("IDLE"):
                m.d.comb += self.instr.ready.eq(1)
                with m.If(self.instr.valid):
                    m.d.sync += idle.eq(0)
                    m.next = "START"

            with m.State("START"):
                m.d.sync += [
                    self.lanes.eq(Mux(instr.heads | (pass_.n > P), P, pass_.n)),
                    self.attending.eq((instr.op == Op.QK) | (instr.op == Op.SV))]
                m.d.sync += [first_block.eq(0), blocks_left.eq(block_end),
                             first_is_last.eq(block_end == 0),
                             keys_left.eq(pass_.ctx), single.eq(pass_.ctx <= instr.rows),
                             tokens_left.load_all(pass_.n)]
                with m.Switch(instr.op):
                    with m.Case(Op.END):
                        m.d.sync += self.pass_end.eq(1)
                        finish(0)
                    with m.Case(Op.EMBED, Op.ROPE):
                        m.next = "TOKEN_TILE"
                    with m.Case(Op.NORM):
                        m.next = "NORM"
                    with m.Case(Op.LINEAR):
                        m.next = "SEEK"
                    with m.Case(Op.QK, Op.SV):
                        m.next = "KEY_TILE"
                    with m.Case(Op.STORE):
                        m.next = "STORE"
                    with m.Default():
                        m.d.comb += self.bad_op.eq(1)   # stands until the watchdog or a flush

            # -- EMBED, ROPE: elements of a tile, one (or one pair) a cycle -----------------------
            with m.State("TOKEN_TILE"):
                m.d.sync += [self.wait_tile.eq(~front), begin_row(),
                             beat_addr.eq(Cat(Const(0, len(addr)), half)),
                             settle.eq(2), element_row.eq(0)]
                with m.If(front):
                    m.next = "TOKEN_READ"
            with m.State("TOKEN_READ"):                 # the address stands; data 2 cycles later
                m.d.sync += settle.eq(settle - 1)
                with m.If(settle == 1):
                    m.d.sync += beat_addr[0].eq(1)
                    m.d.comb += next_beat.eq(1)
                m.d.sync += serial.eq(Mux(is_rope, W // 2, W) - 1)
                with m.If(settle == 0):
                    m.next = "TOKEN_SERIAL"
            with m.State("TOKEN_SERIAL"):
                m.d.sync += serial.eq(serial - 1)
                m.d.comb += [element_valid.eq(is_embed), next_beat.eq(serial == 1)]
                m.d.sync += [self.rope.valid.eq(is_rope), row_no.eq(row_no + is_rope),
                             element_row.eq(element_row + 1)]
                # Data comes 2 cycles after its address, and a beat lasts W/2 >= 2 cycles: the
                # address moves on a cycle before the beat it asked for is taken.
                with m.If(serial == 1):
                    m.d.sync += beat_addr[:len(addr)].eq(beat_addr[:len(addr)] + 1)
                with m.If(serial == 0):
                    m.d.sync += [next_beat_of_row(), serial.eq(Mux(is_rope, W // 2, W) - 1)]
                    with m.If(last_beat):
                        m.d.sync += release_now()
                        m.next = "TOKEN_NEXT"
            with m.State("TOKEN_NEXT"):
                m.d.sync += next_token()
                with m.If(last_lane):
                    m.d.sync += block.eq(block + 1)
                m.next = "TOKEN_TILE"
                with m.If(tokens_left.last):
                    finish(8)

            # -- NORM: the vector unit reads the gammas -------------------------------------------
            with m.State("NORM"):
                m.d.sync += self.wait_tile.eq(~front)
                with m.If(front):
                    m.d.sync += self.norm_start.eq(1)
                    m.next = "NORM_WAIT"
            with m.State("NORM_WAIT"):
                m.d.sync += self.wait_vector.eq(1)
                with m.If(norm_done):
                    m.d.sync += release_now()
                    finish(2)

            # -- LINEAR ---------------------------------------------------------------------------
            with m.State("SEEK"):                       # only the block of the last token
                m.d.sync += [x_block.eq(x_first), block.eq(first_block)]
                with m.If(instr.last & ~first_is_last):
                    m.d.sync += [first_block.eq(first_block + 1),
                                 blocks_left.eq(blocks_left - 1),
                                 first_is_last.eq(blocks_left == 1),
                                 x_first.eq(x_first + model.block_words)]
                with m.Else():
                    m.next = "TILE"
            with m.State("TILE"):
                m.d.sync += self.wait_tile.eq(~front)
                rows = Mux(last_tile, instr.last_rows, instr.rows)
                m.d.sync += [rows_left.load_all(rows), row_end.eq(rows - 1), one_row.eq(rows == 1),
                             final_tile.eq(last_tile), tiles_left.eq(tiles_left - front),
                             begin_row(), row.eq(0), addr.eq(0), row_no.eq(tile_row_no),
                             block.eq(first_block), last_block.eq(first_is_last),
                             x_block.eq(x_first), x_addr.eq(x_first)]
                with m.If(front):
                    m.next = "ROWS"
            with m.State("ROWS"):
                with m.If(~first_beat | may_start):
                    with m.If(first_beat):
                        m.d.sync += hold_rows(P - 1)
                    m.d.sync += [self.array_active.eq(1), lane.res_en.eq(last_beat),
                                 next_beat_of_row(), addr.eq(addr + 1), x_addr.eq(x_addr + 1)]
                    with m.If(last_beat):
                        m.d.sync += [rows_left.step(), x_addr.eq(x_block), row.eq(row + 1),
                                     row_no.eq(row_no + 1)]
                        with m.If(rows_left.last):
                            m.d.sync += [rows_left.load(row_end, last=one_row), row.eq(0),
                                         addr.eq(0), row_no.eq(tile_row_no), block.eq(block + 1),
                                         x_block.eq(x_block + model.block_words),
                                         x_addr.eq(x_block + model.block_words)]
                            with m.If(last_block):
                                m.d.sync += [release_by_control(),
                                             tile_row_no.eq(row_no + 1)]
                                m.next = "TILE"
                                with m.If(final_tile):
                                    finish(flight)
                with m.Else():
                    m.d.sync += self.wait_vector.eq(1)

            # -- QK, SV ---------------------------------------------------------------------------
            with m.State("KEY_TILE"):
                m.d.sync += self.wait_tile.eq(~front)
                m.d.sync += [tile_keys.eq(Mux(keys_left < instr.rows, keys_left, instr.rows)),
                             block.eq(0), x_block.eq(x_first), position.eq(pass_.pos0),
                             score_block.eq(0), slot.eq(0)]
                with m.If(front):
                    m.next = "BLOCK"
            with m.State("BLOCK"):
                reach = Signal(14)
                m.d.comb += reach.eq(position + P)
                m.d.sync += [limit.eq(Mux(instr.heads | (reach > pass_.ctx), pass_.ctx, reach)),
                             tile_end.eq(tile_base + tile_keys),
                             keys_end.eq(tile_keys - 1), one_key.eq(tile_keys == 1)]
                m.next = "BLOCK_KEYS"
            with m.State("BLOCK_KEYS"):
                m.d.sync += [unseen_end.eq(limit - tile_base - 1), fewer.eq(limit < tile_end),
                             none.eq(limit <= tile_base), drains.eq(is_sv & (limit <= tile_end)),
                             age.eq(tile_base - position),
                             last_query.eq(Mux(instr.heads, instr.lanes, limit - position) - 1),
                             score_addr.eq(score_block + tile_base), key.eq(tile_base),
                             addr.eq(0), begin_row(), x_addr.eq(x_block),
                             slot_addr.eq(slot), element.eq(0)]
                m.next = "BLOCK_COUNT"
            with m.State("BLOCK_COUNT"):
                m.d.sync += [held.eq(0), rows_left.load(
                    Mux(fewer, unseen_end, keys_end), last=Mux(fewer, unseen_end == 0, one_key))]
                m.next = "KEYS"
                with m.If(none):
                    m.next = "BLOCK_NEXT"
            with m.State("KEYS"):
                m.d.sync += [lane.acc_addr.eq(slot_addr), held.eq(held >> 1)]
                with m.If(~held[0]):
                    m.d.sync += [
                        self.array_active.eq(1),
                        lane.sc_en.eq(is_qk & last_beat), lane.acc_en.eq(is_sv),
                        lane.sum_en.eq(is_sv & first_beat), next_beat_of_row(),
                        addr.eq(addr + last_part), x_addr.eq(x_addr + 1),
                        slot_addr.eq(slot_addr + 1)]
                    with m.If(last_beat):
                        m.d.sync += [rows_left.step(), x_addr.eq(x_block), slot_addr.eq(slot),
                                     score_addr.eq(score_addr + 1), key.eq(key + 1),
                                     age.eq(age + 1), held.eq(short.replicate(len(held)))]
                        with m.If(rows_left.last):
                            m.next = "BLOCK_NEXT"
                            with m.If(drains):
                                m.next = "DRAIN_SUM"
            with m.State("DRAIN_SUM"):
                with m.If(may_start):
                    m.d.sync += [lane.sum_read.eq(1), lane.res_en.eq(1), lane.res_kind.eq(1),
                                 hold_rows(self.sum_row - 1), begin_row(), slot_addr.eq(slot)]
                    m.next = "DRAIN"
            with m.State("DRAIN"):
                m.d.sync += self.wait_vector.eq(~may_start)
                with m.If(may_start):
                    m.d.sync += [lane.dr_en.eq(1), lane.res_en.eq(1), lane.res_kind.eq(2),
                                 hold_rows(P - 1), element.eq(element + 1)]
                    with m.If(element[:log2_w].all()):
                        m.d.sync += slot_addr.eq(slot_addr + config.sv_cycles)
                    with m.If(element[:log2_columns].all()):
                        m.d.sync += next_beat_of_row()
                        with m.If(last_beat):
                            m.next = "BLOCK_NEXT"
            with m.State("BLOCK_NEXT"):
                m.d.sync += [block.eq(block + 1), x_block.eq(x_block + model.block_words),
                             position.eq(position + P), score_block.eq(score_block + pass_.ctx),
                             slot.eq(Mux(single, 0, slot + row_steps))]
                m.next = "BLOCK"
                with m.If(last_block):
                    m.d.sync += [release_by_control(), tile_base.eq(tile_base + instr.rows),
                                 keys_left.eq(keys_left - tile_keys)]
                    m.next = "KEY_TILE"
                    with m.If(last_keys):
                        finish(flight)
                        with m.If(is_qk):
                            finish(scored)

            # -- STORE: words of all tokens, token after token ------------------------------------
            with m.State("STORE"):
                m.d.comb += self.store_cmd.valid.eq(1)
                m.d.sync += [self.wait_store.eq(1), x_block.eq(instr.x), x_addr.eq(instr.x),
                             begin_row()]
                with m.If(self.store_cmd.ready):
                    m.next = "STORE_WORDS"
            with m.State("STORE_WORDS"):
                with m.If(with_room):
                    m.d.sync += [lane.st_en.eq(1), next_beat_of_row(),
                                 x_addr.eq(x_addr + last_store)]
                    with m.If(last_beat):
                        m.d.sync += [next_token(), x_addr.eq(x_block)]
                        with m.If(last_lane):
                            m.d.sync += [x_block.eq(x_block + model.block_words),
                                         x_addr.eq(x_block + model.block_words)]
                        with m.If(tokens_left.last):
                            finish(0)
                with m.Else():
                    m.d.sync += self.wait_store.eq(1)

            with m.State("SETTLE"):
                m.d.sync += self.wait_vector.eq(1)
                with m.If(settle != 0):
                    m.d.sync += settle.eq(settle - 1)
                with m.Elif(~vector_busy):
                    m.d.sync += [self.retired.eq(1), idle.eq(1)]
                    m.next = "IDLE"

        # Always moving: it is 18 * W flip-flops wide, so its enable would come late.
        m.d.sync += [self.rope.cos.eq(shift_reg[0]), self.rope.sin.eq(shift_reg[1]),
                     self.rope.addr.eq(row_no)]
        # A register for each few values that hear it.
        loads = fanout(m, next_beat, W // 2, name="load")
        twos = fanout(m, instr.op == Op.ROPE, W // 2, name="by_two")
        for i in range(W):
            load, by_two = loads[i // 2], twos[i // 2]
            one, two = (shift_reg[min(i + k, W - 1)] for k in (1, 2))
            m.d.sync += shift_reg[i].eq(Mux(load, self.tile.beat[i], Mux(by_two, two, one)))
        return m
