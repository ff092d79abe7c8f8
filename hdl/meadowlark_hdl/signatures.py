"""Interfaces between the blocks, from the point of view of the one that initiates.

Streams are :class:`amaranth.lib.stream.Signature`. Everything between the engine's issue stage and
the activation memory is a rigid pipeline: it moves every cycle and nothing in it can stall, so the
issue stage starts a row only when all it will produce can be taken.
"""
from amaranth.hdl import ShapeLike, signed, unsigned
from amaranth.lib import data, stream
from amaranth.lib.wiring import In, Out, Signature

from .config import Config
from .isa import FIELDS, INSTRUCTION_BITS, MODEL_REGS
from .run_table import RUN_REGS, STOP_IDS

#: An instruction as the engine sees it; same bit order as :func:`isa.encode`.
InstructionLayout = data.StructLayout({f.name: f.bits for f in FIELDS})
#: Registers constant while a model runs.
ModelLayout = data.StructLayout({f.name: f.bits for f in MODEL_REGS})
assert InstructionLayout.size <= INSTRUCTION_BITS


class PassLayout(data.StructLayout):
    """What is constant during one pass over the model.

    pos0: position of the first token. n: tokens, 1..blocks*P. nb: blocks of P tokens,
    ceil(n / P). ctx: pos0 + n. final: the pass ends the prompt, or is a decode pass. sub_heads,
    sub_blocks: query heads of a KV head, and blocks, that attend at once, at most. batch: each
    token says where it belongs (:func:`PlaceLayout`); pos0 counts the run's passes, from 0. each: a
    pass of one block, all of whose tokens have logits; without it, the last one of a final pass
    has.
    """

    def __init__(self) -> None:
        super().__init__({"pos0": 13, "n": 13, "nb": 6, "ctx": 13, "final": 1,
                          "sub_heads": 5, "sub_blocks": 5, "batch": 1, "each": 1})


def PlaceLayout() -> data.StructLayout:
    """Where a token of a batch belongs in the run's first pass, see
    :class:`.sequencer_golden.Place`; in each later one a position further. The base of slot 0 is
    that of a run of one sequence as well."""
    return data.StructLayout({"base": 27, "position": 13})


def ReadCommand(config: Config) -> data.StructLayout:
    """addr in bus words, len - 1 in bus words."""
    return data.StructLayout({"addr": 32, "len": range(config.burst_words)})


class MemoryPort(Signature):
    """External memory, seen by the core.

    r_cmd / r_data: each command returns len + 1 bus words, in order. w_cmd / w_data: one strobe a
    byte; w_done is high for one cycle for each write command whose data is in memory: a read
    issued later returns it. Reads and writes are otherwise unordered.
    """

    def __init__(self, config: Config) -> None:
        bits = config.bus_bytes * 8
        super().__init__({
            "r_cmd": Out(stream.Signature(ReadCommand(config))),
            "r_data": In(stream.Signature(bits)),
            "w_cmd": Out(stream.Signature(ReadCommand(config))),
            "w_data": Out(stream.Signature(data.StructLayout(
                {"data": bits, "strb": config.bus_bytes}))),
            "w_done": In(1),
            "ready": In(1),
        })


def ReadPort(config: Config) -> Signature:
    """r_cmd and r_data of a :class:`MemoryPort`, for a block that only reads."""
    members = MemoryPort(config).members
    return Signature({name: members[name] for name in ("r_cmd", "r_data")})


def WritePort(config: Config) -> Signature:
    """w_cmd, w_data and w_done of a :class:`MemoryPort`, for a block that only writes."""
    members = MemoryPort(config).members
    return Signature({name: members[name] for name in ("w_cmd", "w_data", "w_done")})


def TileJob(config: Config) -> data.StructLayout:
    """One tile to read: addr in chunks, chunks in all (1..4095), and how to decode it.

    rows: row headers in the tile. beats: beats of payload. packed: the payload is packed; chunks
    of such tiles need not be those of this tile, only in all.
    """
    return data.StructLayout({"addr": 27, "chunks": 12, "mode": 3, "header": 2, "rows": 8,
                              "beats": range(config.tile_beats + 1), "packed": 1})


def TileTag(config: Config) -> data.StructLayout:
    """The part of a TileJob that the decoder needs."""
    return data.StructLayout({"mode": 3, "header": 2, "rows": 8,
                              "beats": range(config.tile_beats + 1), "packed": 1})


def ScratchCommand(config: Config) -> data.StructLayout:
    """Issue -> scratch memory: a row of each token of the pass goes to memory, 2**log2_words words
    of W values, log2_words at most 6; with ``config.tight_keys`` ``words`` of them, 1..64. addr:
    chunk in memory of the row of position 0, without the token's base; word: where in a token's
    part of scratch memory its row begins."""
    size = {"words": 7} if config.tight_keys else {"log2_words": 3}
    return data.StructLayout({"addr": 27, "word": 12} | size)


def StoreCommand() -> data.StructLayout:
    """Scratch memory -> store unit. addr: first chunk in memory; chunks: words that follow for it,
    1..4095, contiguous in memory."""
    return data.StructLayout({"addr": 27, "chunks": 12})


def RowScale() -> data.StructLayout:
    """Requantisation of a row (see requant_golden)."""
    return data.StructLayout({"mant": 16, "shift": 6, "bias": signed(32)})


def Beat(config: Config) -> data.ArrayLayout:
    """W signed weights, or values of a table."""
    return data.ArrayLayout(signed(config.beat_bits), config.W)


def Weights(config: Config) -> data.ArrayLayout:
    """W signed weights as the lanes take them: a :func:`Beat`, or its low bytes."""
    return data.ArrayLayout(signed(config.weight_bits), config.W)


def DecoderItem(config: Config) -> data.StructLayout:
    """Decoder -> tile buffer. is_scale (only in a valid item): ``scales`` are the headers of the
    next rows, W / 4 at once (beyond the tile's last row they mean nothing), else ``beat`` is the
    next beat. last: last item of the tile (always a beat)."""
    return data.StructLayout({"is_scale": 1, "last": 1,
                              "scales": data.ArrayLayout(RowScale(), config.W // 4),
                              "beat": Beat(config)})


class TileFill(Signature):
    """Decoder -> tile buffer: items, never stalled.

    freed: one bit a half of the buffer, high for one cycle when the half is empty again. Both are
    after reset; a tile's items may come only for a half that is.
    """

    def __init__(self, config: Config) -> None:
        super().__init__({"valid": Out(1), "payload": Out(DecoderItem(config)), "freed": In(2)})


class TileRead(Signature):
    """Engine -> tile buffer.

    available: one bit a half, high from the cycle after its tile is complete until released;
    tiles fill the halves in turn, half 0 first after reset. beat_addr = {half, beat}, scale_addr =
    {half, row} (half is the top bit) may change every cycle; the data is valid 2 cycles later
    (RAM, then its register). release: one bit a half, high for one cycle gives the half back.
    """

    def __init__(self, config: Config) -> None:
        super().__init__({
            "available": In(2),
            "beat_addr": Out(range(2 * config.tile_beats)),
            "beat": In(Beat(config)),
            "scale_addr": Out(range(2 * config.tile_rows)),
            "scale": In(RowScale()),
            "release": Out(2),
        })


def Destination(config: Config) -> data.StructLayout:
    """Where a row of results goes, and what is made of it. Constant for its P results.

    sink, pair, fn, wide, stats: see :data:`.isa.FIELDS`. by: right shift in front of the memory, 0
    for what is not shifted. block: of tokens. element: of activations, scratch memory, the residual
    or the sampler; of a GLU twice that, and 1 more for its second row; of another pair odd for
    the second row. angle: pair within its head. heads: lanes are heads. to_lane: with heads where
    the results go, of each lane head_dim elements behind those of the one before; of DRAIN the
    last lane that has one, and block is the lane where they go. SUM: element and by are the
    mantissa and the shift of the output scale. paired (with ``config.lane_pairs``): a head has
    sv_cycles lanes, which take what goes to to_lane; of DRAIN each has the next element. cap
    (with ``config.softcap``): of logits the factor of their soft cap, 0 without.
    """
    return data.StructLayout({
        "sink": 3, "pair": 2, "fn": 3, "wide": 1, "stats": 1, "by": 6, "heads": 1,
        "to_lane": range(config.P), "block": 6, "element": Config.ROW_BITS,
        "angle": Config.MAX_HEAD_LOG2 - 1} | (
            {"paired": 1} if config.lane_pairs else {}) | (
            {"cap": Config.CAP_BITS} if config.softcap else {}))


def Result(config: Config) -> data.StructLayout:
    """One result of the array, engine -> vector unit, at most one a cycle, never stalled.

    A row of results is P consecutive cycles, lane 0 first. kind: see :class:`.isa.Kind`. add: it is
    added to the residual, not written. to: where it goes.
    """
    return data.StructLayout({
        "acc": signed(Config.ACC_BITS), "lane": range(config.P), "kind": 2, "add": 1,
        "to": Destination(config), "scale": RowScale()})


def NormJob() -> data.StructLayout:
    """A NORM, issue -> vector unit: it has no results of the array. lent: there is one, and with it
    last, wide, shift, y, beside and row_beats of the instruction."""
    return data.StructLayout({"lent": 1, "last": 1, "wide": 1, "shift": 6, "y": 15, "beside": 1,
                              "row_beats": 11})


class ResultPort(Signature):
    def __init__(self, config: Config) -> None:
        super().__init__({"valid": Out(1), "payload": Out(Result(config))})


class ActWrite(Signature):
    """Vector unit -> activation memories; one word of one lane a cycle, never stalled.

    data[i % 4] goes to element i of the word where mask[i] is set. Takes effect at most P + 2
    cycles later (the write travels from lane to lane). paired (with ``config.lane_pairs``): lane is
    the number of a head, and all lanes of that head take it.
    """

    def __init__(self, config: Config) -> None:
        super().__init__({
            "valid": Out(1), "lane": Out(range(config.P)),
            "addr": Out(range(config.act_words)), "mask": Out(config.W),
            "data": Out(data.ArrayLayout(signed(Config.X_BITS), 4)),
            **({"paired": Out(1)} if config.lane_pairs else {})})


class WordWrite(Signature):
    """Into a memory, a word per cycle; en: in this one."""

    def __init__(self, depth: int, shape: ShapeLike) -> None:
        super().__init__({"en": Out(1), "addr": Out(range(depth)), "data": Out(shape)})


def PlaceWrite(config: Config) -> WordWrite:
    """Where the token of a slot of a batch belongs; between runs."""
    return WordWrite(config.P, PlaceLayout())


def SeedWrite(config: Config) -> WordWrite:
    """The seed of a slot of a batch, see :func:`.sampler_golden.lane_seed`; between runs."""
    return WordWrite(config.P, 32)


class ScratchWrite(Signature):
    """Vector unit -> scratch memory; some of four values a cycle, never stalled.

    addr: of four values. data[i] goes to value i where mask[i] is set. Takes effect two cycles
    later.
    """

    def __init__(self, config: Config) -> None:
        super().__init__({
            "valid": Out(1), "addr": Out(range(config.scratch_bytes // 4)), "mask": Out(4),
            "data": Out(data.ArrayLayout(signed(8), 4))})


class RopeWrite(Signature):
    """Engine -> RoPE memory: pair ``addr`` = token_slot * head_dim/2 + i."""

    def __init__(self, config: Config) -> None:
        super().__init__({"valid": Out(1), "addr": Out(range(config.rope_pairs)),
                          "cos": Out(signed(16)), "sin": Out(signed(16))})


class LogitPort(Signature):
    """Vector unit -> sampler: one logit of the head, in row order, never stalled. Where several
    tokens have logits, those of a row come one behind the other."""

    def __init__(self) -> None:
        super().__init__({"valid": Out(1), "row": Out(Config.ROW_BITS),
                          "value": Out(signed(Config.LOGIT_BITS))})


class TurnPort(Signature):
    """Inside the sampler: a logit, of which of the pass's tokens whose logits count, and whether it
    is the first of that token. turns: as many tokens at most."""

    def __init__(self, turns: int) -> None:
        super().__init__({**LogitPort().members, "turn": Out(range(turns)), "first": Out(1)})


def RunLayout() -> data.StructLayout:
    """A run: what the host asks for, see :data:`.run_table.RUN_REGS`. Constant from start to done.

    Below start_pos the KV cache is kept. inv_t_mant .. seed: sampler_golden.Sampling. stop_count
    stop ids are compared with each generated token; a stop token is sent, then the run ends.
    """
    return data.StructLayout({field.name: field.bits for field in RUN_REGS[:-STOP_IDS]} | {
        "stop_ids": data.ArrayLayout(Config.TOKEN_BITS, STOP_IDS)})


def TokenEvent() -> data.StructLayout:
    """Sequencer -> link: one generated token. crc: CRC-32 of the logits it was drawn from.
    reason: 0 the run goes on; 1 stop id; 2 max_new reached; 3 context full; 4 aborted or error
    (token, crc then hold nothing); 5 cache filled (max_new = 0, no token)."""
    return data.StructLayout({"token": Config.TOKEN_BITS, "crc": 32, "reason": 3})


class SequencerPort(Signature):
    """Link -> sequencer.

    start: one cycle, taken only while not busy. abort: one cycle, any time; busy falls when the
    core is ready for another run and an event with reason 4 has been sent. token_*: write port of
    the token memory (address = position, in a batch the slot), while not busy; so are places and
    seeds.
    error: 0 none, else see :mod:`meadowlark_hdl.control.errors`; error_pc: instruction at fault;
    both hold until start.
    """

    def __init__(self, config: Config) -> None:
        super().__init__({
            "run": Out(RunLayout()), "model": Out(ModelLayout), "start": Out(1), "abort": Out(1),
            "busy": In(1), "events": In(stream.Signature(TokenEvent())),
            "places": Out(PlaceWrite(config)), "seeds": Out(SeedWrite(config)),
            "token_en": Out(1), "token_addr": Out(range(config.context)),
            "token_data": Out(Config.TOKEN_BITS),
            "prog_en": Out(1), "prog_addr": Out(range(config.prog_depth)),
            "prog_data": Out(unsigned(INSTRUCTION_BITS)),
            "error": In(8), "error_pc": In(16)})


def LotsLayout() -> data.StructLayout:
    """What one QK or SV is for, see :class:`.sequencer_golden.Lots`. heads, blocks, keys: how many.
    first: position of the first key."""
    return data.StructLayout({"heads": 5, "blocks": 5, "first": 13, "keys": 13, "begin": 1,
                              "again": 1})


def FetchedInstruction() -> data.StructLayout:
    """Fetch -> issue: the instruction, where it stood, and of QK and SV the lots."""
    return data.StructLayout({"instr": InstructionLayout, "pc": 16, "lots": LotsLayout()})
