"""The one set of parameters a core is built from."""
from __future__ import annotations

from dataclasses import dataclass, fields, replace

from .only import Only


def _pow2(n: int) -> bool:
    return n > 0 and n & (n - 1) == 0


@dataclass(frozen=True, kw_only=True)
class Config:
    """Size of every array and memory of a core; validates itself.

    A core serves each model that fits in its envelope (see
    :mod:`meadowlark.compile.compiler`), so nothing here belongs to one model.

    Parameters
    ----------
    W : int, power of two, 4..32
        Weights per beat and multipliers per lane. A *chunk* of memory is W bytes.
    P : int, 3..32
        Token lanes.
    bus_bytes : int, power of two, at most W
        Width of the memory bus.
    act_words : int
        Depth of a lane's activation memory, in words of W int16.
    scratch_bytes : int, power of two, 1024..65536
        Scratch memory: new keys and values of a pass, until memory has them.
    residual_values : int, multiple of 4
        int32 values of the residual, over all resident tokens.
    score_depth : int, power of two
        Scores a lane can hold.
    rope_pairs : int
        (cos, sin) pairs held on the chip, over all resident tokens.
    tile_beats : int, power of two
        Beats in each half of the double tile buffer.
    tile_rows : int, power of two, 2..128
        Rows (row scales) in each half of the tile buffer.
    fifo_words : int, power of two
        Run-ahead FIFO of the Reader, in bus words.
    prog_depth : int, power of two
        Instructions in the program memory.
    context : int, power of two
        Tokens the token memory and the counters can hold.
    burst_words : int, power of two
        Longest memory burst, in bus words; at least a chunk.
    topk : int
        Length of the sampler's sorted list.
    packing : int, 0..3
        Packed weights that the decoder reads: 1 entropy-coded, 2 MEADOW's, 3 both, 0 none.
    unpack_cycles : int, 1, 2 or 4
        Cycles in which the unpacker, or the unit of the block modes, gives W weights. More where
        memory gives them no sooner: 2 is smaller and has a quicker clock, 4 (W from 8 on) is half
        of that again.
    sv_cycles : int, power of two, 2..W/2
        Cycles in which a lane takes a beat of W values in SV. W / sv_cycles of its multipliers
        have an accumulator, at most one of two that share an adder: logic against time in a tenth
        of a prefill, and blocks of a long prompt's pass (their accumulators are as many fewer).
    vector_products : int, 8 or 23
        Multipliers of the vector unit. 23: each has one job. 8: those that are never busy at once
        are one, and NORM does one value per cycle instead of four; results are the same.
    block_modes : bool
        The decoder reads blocks of GGUF files (modes Q8_0, Q4_0, Q4_1). Without, such models are
        run from int8 weights, and beats on their way along the lanes are less than half as wide.
    batches : bool
        Passes with tokens of several sequences, and passes that check drafts: each of their tokens
        has logits. Without, only the last token of a pass has.
    gemm : bool
        Scores and probabilities may go to memory and come back (SPILL, FILL), as in attention by
        GEMM: the baseline of MEADOW, and no use but to be measured. Takes P a power of two, at most
        W / 2, and block_modes.
    tight_keys : bool
        A key takes as many words of memory as it has, not a power of two: fewer bytes of a latent,
        or of heads of 48 or 80 values. Takes two multipliers of 13 x 7 bits in Scratch.
    fences : bool
        Fetch stops in front of an instruction that says so until all before it is done, as in a
        machine that loads weights operator by operator: the baseline of FlashFormer, and no use but
        to be measured.
    unified : bool
        A QK may have a unified maximum: its SV begins beside its last scores, and once more where a
        row's own maximum turns out to be elsewhere. To be measured; it takes a comparison a lane.
    lane_pairs : bool
        In decode a query head may have ``sv_cycles`` lanes, each with another part of a beat of SV,
        which then takes one cycle: for models whose KV heads have few query heads.
    softcap : bool
        Scores and logits may have a soft cap. Takes a table of 512 words of 29 bits and two
        multipliers in each lane, and in front of the sampler; and cycles from each QK to its SV.
    one_half : bool
        A tile is decoded when the one before is used up, as into a tile buffer that is not double:
        the baseline of double buffers, and no use but to be measured.
    only : Only, optional
        The core runs this model's images alone, and knows of them what never changes.
    """
    W: int
    P: int
    bus_bytes: int
    act_words: int = 512
    scratch_bytes: int = 16384
    residual_values: int = 16384
    score_depth: int = 1024
    rope_pairs: int = 2048
    tile_beats: int = 512
    tile_rows: int = 64
    fifo_words: int = 1024
    prog_depth: int = 2048
    context: int = 1024
    burst_words: int = 128
    topk: int = 32
    packing: int = 0
    unpack_cycles: int = 1
    sv_cycles: int = 2
    vector_products: int = 23
    block_modes: bool = True
    batches: bool = True
    gemm: bool = False
    tight_keys: bool = False
    fences: bool = False
    unified: bool = False
    lane_pairs: bool = False
    softcap: bool = False
    one_half: bool = False
    only: Only | None = None

    def __post_init__(self) -> None:
        def need(ok: bool, what: str) -> None:
            if not ok:
                raise ValueError(what)
        need(_pow2(self.W) and 4 <= self.W <= 32, f"W must be 4, 8, 16 or 32, not {self.W!r}")
        need(3 <= self.P <= 32, f"P must be in 3..32, not {self.P!r}")
        need(_pow2(self.bus_bytes) and self.bus_bytes <= self.W,
             f"bus_bytes must be a power of two of at most W={self.W}, not {self.bus_bytes!r}")
        for name in ("score_depth", "tile_beats", "fifo_words", "prog_depth", "context",
                     "burst_words"):
            need(_pow2(getattr(self, name)), f"{name} must be a power of two, "
                 f"not {getattr(self, name)!r}")
        need(_pow2(self.scratch_bytes) and 1024 <= self.scratch_bytes <= 65536, "scratch_bytes "
             f"must be a power of two in 1024..65536, not {self.scratch_bytes!r}")
        need(self.burst_words <= self.fifo_words // 2,
             f"burst_words must be at most half of fifo_words, not {self.burst_words!r}")
        need(self.burst_words >= self.bus_per_chunk, "burst_words must be at least the "
             f"{self.bus_per_chunk} bus words of a chunk, not {self.burst_words!r}")
        need(self.residual_values % 4 == 0,
             f"residual_values must be a multiple of 4, not {self.residual_values!r}")
        need(_pow2(self.tile_rows) and 2 <= self.tile_rows <= 128,
             f"tile_rows must be a power of two in 2..128, not {self.tile_rows!r}")
        need(self.W < 32 or self.P >= 5, f"P must be at least 5 with W=32, not {self.P!r}")
        need(self.context <= 4096, f"context must be at most 4096, not {self.context!r}")
        need(1 <= self.topk <= 32, f"topk must be in 1..32, not {self.topk!r}")
        need(self.packing in range(4), f"packing must be in 0..3, not {self.packing!r}")
        need(self.unpack_cycles in (1, 2, 4),
             f"unpack_cycles must be 1, 2 or 4, not {self.unpack_cycles!r}")
        need(self.unpack_lanes >= 4, f"unpack_cycles must be 1 or 2 with W={self.W}")
        need(_pow2(self.sv_cycles) and 2 <= self.sv_cycles <= self.W // 2, "sv_cycles must be a "
             f"power of two in 2..W/2={self.W // 2}, not {self.sv_cycles!r}")
        need(self.vector_products in (8, 23),
             f"vector_products must be 8 or 23, not {self.vector_products!r}")
        for name in ("block_modes", "batches", *self.EXTRAS):
            need(getattr(self, name) in (0, 1),
                 f"{name} must be True or False, not {getattr(self, name)!r}")
        need(not self.gemm or self.block_modes and _pow2(self.P) and 2 * self.P <= self.W,
             f"gemm needs block_modes and P a power of two of at most W / 2, not {self.P!r}")

    #: What most cores have not, and images need by name.
    EXTRAS = ("gemm", "tight_keys", "fences", "unified", "lane_pairs", "softcap", "one_half")
    # Widths that follow from the numerics (docs/numerics.md); facts live here once.
    X_BITS = 16         # an activation
    ACC_BITS = 45       # 18 + 16 + log2(2048)
    PV_BITS = 36        # int8 value times a probability of at most 2**15, over 4096 keys
    SCORE_BITS = 18     # 10 fractional bits
    CAP_BITS = 16       # half a soft cap, in units of what is capped
    RESID_BITS = 27     # residual, saturating (stored in 32)
    SUMSQ_BITS = 64
    LOGIT_BITS = 32     # 12 fractional bits
    TOKEN_BITS = 19     # an id: a row of embedding and head
    ROW_BITS = TOKEN_BITS   # of a matrix: the head has most
    MAX_HEAD_LOG2 = 8   # of a head's values, padded
    PASS_BLOCKS = 32    # blocks of tokens of a pass, at most: what the vector unit numbers
    SUM_BLOCKS = 16     # lots of which a lane keeps the maximum and the sum
    LOGIT_CYCLES = 4    # in which the sampler takes a logit
    ACC_TURN = 4        # cycles from a slice to the same slice, at least

    @property
    def row_cycles(self) -> int:
        """Cycles from one row's results to the next row's, at least: P leave one a cycle, and what
        is read for them, and written back, wants 4."""
        return max(4, self.P)

    @property
    def bus_per_chunk(self) -> int:
        """Bus words in a chunk of W bytes."""
        return self.W // self.bus_bytes

    @property
    def beat_bits(self) -> int:
        """Bits of a value in a beat: weights from blocks have 18, tables and gammas 16."""
        return 18 if self.block_modes else 16

    @property
    def weight_bits(self) -> int:
        """Bits of a value that the lanes multiply: int8 weights, keys and values, if no blocks."""
        return 18 if self.block_modes else 8

    @property
    def unpack_lanes(self) -> int:
        """Lanes of the unpacker: each gives a weight in one or two cycles."""
        return self.W // 2 if self.unpack_cycles == 4 else self.W

    @property
    def store_bytes(self) -> int:
        """Bytes that leave scratch memory in a cycle: those memory takes, at least 4."""
        return min(self.W, max(4, self.bus_bytes))

    @property
    def sv_columns(self) -> int:
        """Multipliers of a lane that have a broadcast accumulator: values of a slice."""
        return self.W // self.sv_cycles

    @property
    def acc_slots(self) -> int:
        """Depth of the broadcast accumulators, in slices of sv_columns: 64 values at least."""
        return max(16, 64 // self.sv_columns)

    @property
    def sv_values(self) -> int:
        """Most values of a head that an SV takes at once, a power of two: the accumulators'. A
        wider head's come in as many SVs as it takes."""
        return self.acc_slots * self.sv_columns

    @property
    def spilled_keys(self) -> int:
        """Keys whose scores, or probabilities, of P lanes make two chunks of memory."""
        return self.W // self.P

    @property
    def shared_products(self) -> bool:
        """Operators of the vector unit share multipliers."""
        return self.vector_products < 23

    @property
    def turns(self) -> int:
        """Tokens of a pass that have logits, at most."""
        return self.P if self.batches else 1

    @property
    def drafts(self) -> bool:
        """There is a drafter: where passes check drafts, and a bucket of its table is a bus word or
        several."""
        return self.batches and self.bus_bytes <= 16

    @property
    def norm_width(self) -> int:
        """Residual values a cycle in NORM."""
        return 1 if self.shared_products else 4

    def replace(self, **changes) -> Config:
        return replace(self, **changes)

    @property
    def only_crc(self) -> int:
        """Names the one model that the core is for; 0: any."""
        return self.only.crc if self.only else 0

    def as_dict(self) -> dict:
        """Its sizes, by name: all but ``only``; those of :data:`EXTRAS` only where they are on.
        """
        return {f.name: getattr(self, f.name) for f in fields(self)
                if f.name != "only" and (f.name not in self.EXTRAS or getattr(self, f.name))}
