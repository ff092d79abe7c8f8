"""The instruction set and the model registers: pure data, imported by gateware, compiler and docs.

An instruction is one operator of the model with the stream of tiles it consumes. The fetch unit
walks a list, turns the memory fields into tile jobs for the Reader (run-ahead) and queues the
whole instruction for the engine, which executes strictly in order.
"""
from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple


class Op(IntEnum):
    END = 0     #: end of the list; with ``last`` set only if more prompt passes follow
    EMBED = 1   #: rows of the pass's tokens, or of their positions -> residual or activations
    ROPE = 2    #: (cos, sin) rows of the pass's positions -> RoPE memory
    NORM = 3    #: RMSNorm of the residual, or of values beside it -> activation memory
    LINEAR = 4  #: weight rows x activations -> pair, fn -> sink
    STORE = 5   #: scratch memory -> KV cache, beside what follows
    QK = 6      #: cached keys x queries -> scores (stay in the lanes)
    SV = 7      #: softmax(scores) x columns of cached values -> activation memory
    SPILL = 8   #: scores, or their probabilities -> memory; of a core with ``gemm``
    FILL = 9    #: what SPILL wrote -> in the place of the scores


class Src(IntEnum):
    NONE = 0
    STREAM = 1  #: next tiles of the weight stream (pointer advances by itself)
    TABLE = 2   #: one tile per token of the pass, row pos0.. of a table at ``addr``
    TOKEN = 3   #: one tile per token of the pass, row token-id of a table at ``addr``
    KV = 4      #: keys or values that lanes see of those at ``addr`` (waits for all earlier STOREs)


class Sink(IntEnum):
    """Where results go."""
    NONE = 0        #: there are none
    ACT = 1         #: activation memory, element y + row
    SCRATCH = 2     #: scratch memory, likewise
    RESIDUAL = 3    #: added to the residual; EMBED without ``add``: in its place
    LOGIT = 4       #: sampler; last token of the pass only
    BESIDE = 5      #: values beside the residual, in their place, for NORM


class Pair(IntEnum):
    """What is made of rows 2i and 2i+1 of LINEAR."""
    NONE = 0    #: each is for itself: fn(row) >> shift, without fn unshifted
    ROPE = 1    #: rotated by an angle of the RoPE memory, >> shift: two rows
    GLU = 2     #: fn(row 2i) * (row 2i+1) >> shift: one row, number i


class Fn(IntEnum):
    """Function of a row of LINEAR. Of one for the sampler, and of a score, TANH is a soft cap."""
    NONE = 0        #: the row itself
    SILU = 1        #: x * sigmoid(x)
    RELU = 2        #: x, or 0 for what is negative
    GELU = 3        #: x * (share of a normal distribution below x)
    GELU_TANH = 4   #: about that, by a hyperbolic tangent
    TANH = 5        #: hyperbolic tangent


class Kind(IntEnum):
    """What a result of the array is: of which kind is its row."""
    ROW = 0     #: of LINEAR, requantised by ``scale``
    SUM = 1     #: a lane's sum of probabilities, which becomes its output scale
    DRAIN = 2   #: of SV, requantised by the output scale of its lane
    TOKEN = 3   #: of EMBED: a row, but those of a token follow each other


class Mode(IntEnum):
    """How the decoder turns chunks into beats."""
    INT8 = 0    #: one chunk per beat
    INT16 = 1   #: two chunks per beat, little endian
    # Blocks of 32 weights: all scales of the tile, padded to whole chunks, then all codes.
    Q8_0 = 2    #: scale * code, one chunk per beat
    Q4_0 = 3    #: scale * (code - 8), half a chunk per beat: low halves of the bytes first
    Q4_1 = 4    #: scale * code + minimum, likewise


class Header(IntEnum):
    """Row header at the start of a tile, padded with zeros to whole chunks."""
    NONE = 0
    SCALE = 1   #: 4 bytes per row: mantissa u16, shift u8, zero
    BIAS = 2    #: 8 bytes per row: mantissa u16, shift u8, zero, bias int32
    SHORT = 3   #: 2 bytes per row: 10 bits of the mantissa below its leading one, shift above them


class Field(NamedTuple):
    """ops: operators that it is of, and with fn those with this function; of others it may be
    anything. (): of all."""
    name: str
    bits: int
    doc: str
    ops: tuple[Op, ...] = ()
    fn: Fn = Fn.NONE

    def of(self, op: int, fn: int) -> bool:
        """Whether it is of an operator with a function."""
        return not self.ops or op in self.ops or self.fn != Fn.NONE and fn == self.fn


#: Fields from bit 0 up; all unsigned.
FIELDS = (
    Field("op", 4, "operator (Op)"),
    Field("src", 3, "where its tiles come from (Src)"),
    Field("mode", 3, "decoder mode (Mode)"),
    Field("header", 2, "row header (Header)"),
    Field("sink", 3, "where results go (Sink)"),
    Field("pair", 2, "LINEAR: what is made of two rows (Pair)"),
    Field("fn", 3, "LINEAR: function of a row; QK: of a score (Fn)"),
    Field("wide", 1, "ACT: saturated to 16 bits, else 8"),
    Field("stats", 1, "RESIDUAL, BESIDE: collects each token's sum of squares, for NORM"),
    Field("last", 1, "only the block of the pass's last token. END: conditional"),
    Field("heads", 1, "lanes are query heads (decode attention), not tokens"),
    Field("lanes", 6, "heads=1: number of lanes in use; with add, sv_cycles for each head"),
    Field("group", 6, "QK, SV: query heads, one behind the other; heads=1: 1",
          (Op.QK, Op.SV, Op.SPILL, Op.FILL)),
    Field("addr", 27, "memory address in chunks (TABLE, TOKEN, KV, STORE)"),
    Field("tiles", 19, "STREAM: number of tiles, no more than rows of the largest matrix"),
    Field("rows", 8, "rows of a tile (QK, SV: keys of a full tile)"),
    Field("last_rows", 8, "rows of the last tile"),
    Field("row_beats", 11, "beats per row: ceil(K/W); SV: a power of two; QK, and STORE (chunks "
                           "per token): likewise, or any number with tight_keys"),
    Field("chunks", 12, "chunks of a tile, header included (TABLE, TOKEN: row stride as well; KV: "
                        "rows * row_beats)"),
    Field("last_chunks", 12, "chunks of the last tile"),
    Field("x", 12, "input: word address in the activation memory, within a block; STORE: in "
                   "scratch memory, within a token"),
    Field("y", 15, "output: element address in the activation memory, within a block, or in "
                   "scratch memory, within a token"),
    Field("shift", 6, "NORM, QK, pair, fn: right shift; SV: shift of mant"),
    Field("mant", 16, "SV: 16-bit mantissa of v scale / output scale, in 2**15..2**16-1; QK, and "
                      "LINEAR to the sampler, with fn TANH: half the soft cap, in units of scores "
                      "or of logits; QK without: 0, or a unified maximum in whole log2 units, 8 "
                      "bits of two's complement, and 256 times the code of its window, 1 to 3 for "
                      "4, 8 and 16 such units", (Op.QK, Op.SV), Fn.TANH),
    Field("wait", 1, "starts when all earlier STOREs have completed"),
    Field("back", 13, "QK, SV: how many keys before its own a token sees; 8191: all of them",
          (Op.QK, Op.SV, Op.SPILL, Op.FILL)),
    Field("ahead", 1, "QK, SV: a token sees all keys behind its own, too",
          (Op.QK, Op.SV, Op.SPILL, Op.FILL)),
    Field("packed", 1, "STREAM: tiles are packed behind their row headers (docs/packing.md)"),
    Field("more", 1, "SV: another SV follows, for other columns of the values; NORM, LINEAR, with "
                     "fences: its tiles are read when all before it is done",
          (Op.SV, Op.SPILL, Op.FILL, Op.NORM, Op.LINEAR)),
    Field("add", 1, "EMBED: adds its rows to the residual, in place of writing them; LINEAR, QK, "
                    "SV: a head has sv_cycles lanes (docs/architecture.md, lane pairs)",
          (Op.EMBED, Op.LINEAR, Op.QK, Op.SV)),
    Field("beside", 1, "NORM: of values beside the residual, row_beats * W of a token; SPILL: "
                       "probabilities, not scores; SV: scores are probabilities",
          (Op.NORM, Op.SPILL, Op.SV)),
    Field("diagonal", 1, "LINEAR: row r is a beat, of word x + r / W alone", (Op.LINEAR,)),
)
#: ``back`` that reaches all keys before a token's own.
NO_WINDOW = (1 << 13) - 1
INSTRUCTION_BITS = 216      #: stored as 27 bytes, little endian
INSTRUCTION_BYTES = INSTRUCTION_BITS // 8
assert sum(f.bits for f in FIELDS) <= INSTRUCTION_BITS


class Instruction(dict):
    """Field name -> value; absent fields are 0."""

    def __init__(self, op: Op, **fields: int) -> None:
        super().__init__({f.name: 0 for f in FIELDS})
        for name, value in {"op": op, **fields}.items():
            bits = next((f.bits for f in FIELDS if f.name == name), None)
            if bits is None:
                raise ValueError(f"no instruction field named {name!r}")
            if not 0 <= int(value) < 1 << bits:
                raise ValueError(f"instruction field {name} holds {bits} bits, not {value!r}")
            self[name] = int(value)


def encode(instruction: Instruction) -> bytes:
    """Instruction -> 27 bytes."""
    word = at = 0
    for f in FIELDS:
        word |= instruction[f.name] << at
        at += f.bits
    return word.to_bytes(INSTRUCTION_BYTES, "little")


def decode(raw: bytes) -> Instruction:
    """27 bytes -> Instruction."""
    word, out = int.from_bytes(raw, "little"), {}
    for f in FIELDS:
        out[f.name] = word & (1 << f.bits) - 1
        word >>= f.bits
    return Instruction(**out)


def fault(i: Instruction) -> str | None:
    """Why no core can do what an instruction asks for, or have its results as it asks, in a
    sentence; None: it can."""
    op, sink, pair, fn = (i[name] for name in ("op", "sink", "pair", "fn"))
    if op not in Op._value2member_map_:
        return f"there is no operator {op}"
    name = Op(op).name
    sinks = {Op.EMBED: (Sink.RESIDUAL, Sink.ACT), Op.NORM: (Sink.ACT,), Op.SV: (Sink.ACT,),
             Op.LINEAR: tuple(Sink)[1:]}.get(op, (Sink.NONE,))
    to_memory = sink in (Sink.ACT, Sink.SCRATCH)
    for wrong, what in (
            (sink not in sinks, f"{name} has no results for sink {sink}"),
            (pair not in Pair._value2member_map_, f"there is no pair {pair}"),
            (fn not in Fn._value2member_map_, f"there is no function {fn}"),
            (pair and op != Op.LINEAR or fn and op not in (Op.LINEAR, Op.QK),
             f"{name} pairs no rows and has no function"),
            ((pair or fn) and not to_memory and not _caps(i),
             "rows for residual or sampler, and scores, have neither pair nor function, but for a "
             "soft cap of scores and logits"),
            (_caps(i) and not i["mant"], "a soft cap is at least 1"),
            (pair == Pair.GLU and not fn, "a GLU has a function"),
            (pair == Pair.ROPE and fn, "rows that are rotated have no function"),
            (i["wide"] and sink != Sink.ACT, "only activations have 16 bits"),
            (i["stats"] and sink not in (Sink.RESIDUAL, Sink.BESIDE),
             "sums of squares are of the residual alone, or of values beside it"),
            (i["add"] and (op, sink) != (Op.EMBED, Sink.RESIDUAL) and not (
                i["heads"] and op in (Op.LINEAR, Op.QK, Op.SV)),
             "only an EMBED to the residual can be told to add, and only lanes that are heads can "
             "be pairs"),
            (i["heads"] and sink == Sink.SCRATCH, "scratch memory has no lanes"),
            (i["beside"] and op not in (Op.NORM, Op.SPILL, Op.SV),
             "only a NORM reads beside the residual, only SPILL and SV know probabilities"),
            (i["diagonal"] and (op != Op.LINEAR or i["row_beats"] != 1),
             "only rows of a beat of LINEAR can be a diagonal"),
            (op == Op.QK and i["back"] != NO_WINDOW and i["row_beats"].bit_count() != 1,
             "keys in a window have rows of a power of two"),
            (i["heads"] and sink in (Sink.RESIDUAL, Sink.LOGIT, Sink.BESIDE),
             "residual and sampler have no lanes that are heads"),
            (i["heads"] and pair == Pair.GLU, "lanes that are heads have no GLU"),
            (i["y"] and sink in (Sink.RESIDUAL, Sink.LOGIT, Sink.BESIDE),
             "residual and sampler take rows from the first on")):
        if wrong:
            return what
    return None


def _caps(i: Instruction) -> bool:
    """It has a soft cap."""
    return i["fn"] == Fn.TANH and not i["pair"] and (
        i["op"] == Op.QK or i["op"] == Op.LINEAR and i["sink"] == Sink.LOGIT)


def cap_of(i: Instruction) -> int:
    """Its soft cap, as :func:`.compute.softcap_golden.softcap` takes it; 0: it has none."""
    return i["mant"] if _caps(i) else 0


def unified_of(qk: Instruction) -> int:
    """Its unified maximum, see :func:`.compute.softmax_golden.of_field`; 0: it has none."""
    return 0 if _caps(qk) else qk["mant"]


#: Registers that hold for a model: written once after its image is loaded.
MODEL_REGS = (
    Field("prefill_pc", 16, "first instruction of the prefill list"),
    Field("decode_pc", 16, "first instruction of the decode list"),
    Field("stream_addr", 27, "first chunk of the weight stream"),
    Field("block_words", 13, "activation words a resident block of P tokens takes in each lane"),
    Field("token_words", 12, "words of W values a token of a pass takes in scratch memory"),
    Field("blocks", 6, "most resident blocks R"),
    Field("hidden", 13, "values of the residual per token, padded to a multiple of W"),
    Field("head_log2", 4, "log2 of the padded head dimension"),
    Field("group", 6, "most query heads of a QK"),
    Field("eps", 48, "hidden * epsilon in squared residual units"),
    Field("vocab", 19, "token ids: rows of embedding and head"),
    Field("stride", 13, "values of a token, the residual's and those beside it, likewise"),
    Field("draft_addr", 27, "first chunk of the table of drafts"),
    Field("draft_buckets", 17, "its buckets of 16 bytes; 0: there is none"),
    Field("draft_least", 3, "tokens of the context's match that stand before the table: 2..5"),
)
