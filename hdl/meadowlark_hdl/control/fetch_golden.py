"""Golden model of the way of tiles, Fetch, Reader and Decoder: an instruction gets its own."""
from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np

from ..config import Config
from ..isa import Header, Instruction, Mode, Op, Src, cap_of, fault
from ..weights.decoder_golden import decode_tile, header_chunks, tile_chunks
from ..weights.modes import BLOCK, MODES
from ..weights.packing_golden import PackingError, Unpacker
from .sequencer_golden import Lots, Pass, subgroups

#: Fields that say how an instruction's tiles lie in the stream.
_SHAPE = ("mode", "header", "tiles", "rows", "last_rows", "row_beats", "packed")


class ProgramError(ValueError):
    """Program, registers or memory are such that no core can run them.

    pc: index of the instruction at fault; None: of none.
    """

    def __init__(self, what: str, pc: int | None = None) -> None:
        super().__init__(what if pc is None else f"instruction {pc}: {what}")
        self.pc = pc


def need(holds: bool, what: str) -> None:
    """Raise a :class:`ProgramError` that says what, unless it holds."""
    if not holds:
        raise ProgramError(what)


@contextmanager
def blamed(pc: int) -> Iterator[None]:
    """A :class:`ProgramError` in here is the fault of instruction ``pc``."""
    try:
        yield
    except ProgramError as error:
        raise ProgramError(str(error), pc) from error


def walk(config: Config, program: Sequence[Instruction], p: Pass, pc: int,
         ) -> Iterator[tuple[int, Lots | None]]:
    """Places of the instructions that a pass executes, from ``pc`` to the END that ends its list or
    to the program's end; an END that it passes over is none. QK and the SVs behind it come once a
    subgroup, with its lots."""
    while pc < len(program):
        i = program[pc]
        if i["op"] == Op.QK:
            end = last_sv(program, pc)
            for lots in subgroups(config, p, i):
                yield from ((at, lots) for at in range(pc, end + 1))
            pc = end
        elif i["op"] != Op.END:
            yield pc, None
        elif not (i["last"] and p.final):
            yield pc, None
            return
        pc += 1


def check_model(config: Config, model: Mapping[str, int]) -> None:
    """Raises ProgramError unless a core can run what the model registers say."""
    head, slots = 1 << model["head_log2"], model["blocks"] * config.P
    for what, has, limit in (
            ("a head", config.W, head), ("a head", model["head_log2"], config.MAX_HEAD_LOG2),
            ("hidden", config.W, model["hidden"]),
            ("values of a token", model["hidden"], model["stride"]),
            ("blocks", 1, model["blocks"]), ("group", 1, model["group"]), ("eps", 1, model["eps"]),
            ("residual", slots * model["stride"], config.residual_values),
            ("RoPE", slots * head // 2, config.rope_pairs),
            ("activations", model["blocks"] * model["block_words"], config.act_words),
            ("scratch", slots * model["token_words"] * config.W, config.scratch_bytes)):
        need(has <= limit, f"model registers that cannot be: {what}, {has} > {limit}")


def check_instruction(config: Config, i: Instruction) -> None:
    """Raises ProgramError unless a core can do what an instruction asks for."""
    why = fault(i)
    need(why is None, why or "")
    need(i["op"] != Op.STORE or config.tight_keys or i["row_beats"].bit_count() == 1,
         f"a STORE of {i['row_beats']} words of a token")
    need(i["op"] not in (Op.SPILL, Op.FILL) or config.gemm, "a SPILL on a core without gemm")
    need(not cap_of(i) or config.softcap, "a soft cap on a core without softcap")


def last_sv(program: Sequence[Instruction], pc: int) -> int:
    """Place of the last SV behind the QK at ``pc``; whether they are SVs, or SPILL and FILL, is not
    looked at."""
    return next((at for at in range(pc + 1, len(program)) if not program[at]["more"]),
                len(program))


class Rows(NamedTuple):
    """Rows of tiles, decoded. mant, shift, bias: int64[rows]; values: [rows, row_beats * W]."""
    mant: np.ndarray
    shift: np.ndarray
    bias: np.ndarray
    values: np.ndarray


def _name(i: Instruction) -> str:
    """Of its operator, which may be none."""
    return Op(i["op"]).name if i["op"] in Op._value2member_map_ else f"operator {i['op']}"


def stream_chunks(i: Instruction) -> int:
    """Chunks of an instruction's tiles in the stream."""
    return (i["tiles"] - 1) * i["chunks"] + i["last_chunks"]


class GoldenTiles:
    """The tiles of each instruction of a pass, in order.

    Parameters
    ----------
    config : Config
    memory : uint8[bytes]
        Used, not copied. What the stream says is kept once it is decoded, so it must not change.
    floats : bool
        Keep the values of the stream in float64; else in the integers of their mode.

    Attributes
    ----------
    chunks_read : int
        By all jobs so far.

    Raises
    ------
    ProgramError
        From all methods: tiles that do not fit the core, lie beyond the memory, do not decode.
    """

    def __init__(self, config: Config, memory: np.ndarray, *, floats: bool = False) -> None:
        self.config, self.memory, self.floats = config, memory, floats
        self.chunks_read = 0
        # By place and shape: rows, and the unpacker behind them.
        self._kept: dict[tuple[int, ...], tuple[Rows, Unpacker]] = {}
        self.rewind(0)

    def rewind(self, addr: int) -> None:
        """A pass begins; the stream starts at chunk ``addr``."""
        self._at = addr
        self._unpacker = Unpacker(self.config.unpack_lanes, self.config.W)

    def stream(self, i: Instruction) -> Rows:
        """The next tiles of the stream, all of an instruction's."""
        need(i["src"] == Src.STREAM, f"{_name(i)} of tiles that are no stream")
        need(i["tiles"] > 0, "no tiles")
        chunks = stream_chunks(i)
        key = self._at, chunks, *(i[name] for name in _SHAPE)
        if key not in self._kept:
            tiles = list(self._packed(i) if i["packed"] else self._plain(i))
            mant, shift, bias, values = map(np.concatenate, zip(*tiles))
            info = MODES[Mode(i["mode"])]       # weights of blocks have 18 bits
            kind = np.float64 if self.floats else f"i{4 if info.group else info.bits // 8}"
            self._kept[key] = Rows(mant, shift, bias, values.astype(kind)), self._unpacker
        rows, unpacker = self._kept[key]
        self._unpacker = copy.copy(unpacker)        # knows the tables of the segments so far
        self._at += chunks
        self.chunks_read += chunks
        return rows

    def table(self, i: Instruction, which: Sequence[int]) -> list[Rows]:
        """Rows of a table, a tile each."""
        self.chunks_read += len(which) * i["chunks"]
        return [self._tile(i, i["addr"] + row * i["chunks"], 1, i["chunks"]) for row in which]

    def cache(self, i: Instruction, keys: range, base: int, width: int) -> np.ndarray:
        """Keys, or columns of values, of positions ``keys``: int8[len(keys), width]. base: of the
        cache, see :class:`.sequencer_golden.Place`."""
        beats = i["row_beats"]
        need(i["src"] == Src.KV and i["rows"] > 0 and 0 < beats * self.config.W == width
             and i["mode"] == Mode.INT8, f"{_name(i)} of tiles that are no cache")
        need(i["rows"] * beats == i["chunks"] <= self.config.tile_beats,
             f"a tile of {i['rows']} keys in {i['chunks']} chunks")
        self.chunks_read += len(keys) * beats
        raw = self._raw(i["addr"] + base + keys.start * beats, len(keys) * beats)
        return np.frombuffer(raw, np.int8).reshape(len(keys), width)

    def spilled(self, i: Instruction, keys: int) -> np.ndarray:
        """What a SPILL of so many keys wrote: int16[keys, P]."""
        config, (beats, odd) = self.config, divmod(i["chunks"], 2)
        need(i["src"] == Src.KV and i["mode"] == Mode.INT16 and not odd
             and 0 < beats <= config.tile_beats, f"{_name(i)} of tiles that are no scores")
        chunks = 2 * -(-keys // config.spilled_keys)
        self.chunks_read += chunks
        return np.frombuffer(self._raw(i["addr"], chunks), "<i2").reshape(-1, config.P)[:keys]

    def _raw(self, addr: int, chunks: int) -> bytes:
        """Chunks of memory."""
        W = self.config.W
        need((addr + chunks) * W <= len(self.memory), "a tile beyond the memory")
        return self.memory[addr * W:(addr + chunks) * W].tobytes()

    def _shape(self, i: Instruction, rows: int) -> dict[str, int]:
        """Of a tile with so many rows, which has to fit its buffer."""
        beats, headed = rows * i["row_beats"], i["header"] != Header.NONE
        need(0 < beats <= self.config.tile_beats and i["mode"] in Mode._value2member_map_,
             f"a tile of {beats} beats in mode {i['mode']}")
        need(not headed or rows <= self.config.tile_rows, f"a tile of {rows} rows")
        need(not MODES[Mode(i["mode"])].group or i["row_beats"] * self.config.W % BLOCK == 0,
             "rows of parts of blocks")
        return dict(rows=rows, row_beats=i["row_beats"], mode=i["mode"], header=i["header"],
                    W=self.config.W)

    def _tile(self, i: Instruction, addr: int, rows: int, chunks: int) -> Rows:
        """One tile that is not packed."""
        shape = self._shape(i, rows)
        need(chunks == tile_chunks(**shape), f"a tile in {chunks} chunks")
        mant, shift, bias, values = decode_tile(self._raw(addr, chunks), **shape)
        return Rows(mant, shift, bias, values.reshape(rows, -1))

    def _plain(self, i: Instruction) -> Iterator[Rows]:
        for k in range(i["tiles"]):
            rows, chunks = (i["last_rows"], i["last_chunks"]) if k == i["tiles"] - 1 else (
                i["rows"], i["chunks"])
            yield self._tile(i, self._at + k * i["chunks"], rows, chunks)

    def _packed(self, i: Instruction) -> Iterator[Rows]:
        """Packed tiles lie one behind the other; the jobs cover them together."""
        W, at, raw = self.config.W, 0, self._raw(self._at, stream_chunks(i))
        try:
            for k in range(i["tiles"]):
                shape = self._shape(i, i["last_rows"] if k == i["tiles"] - 1 else i["rows"])
                head = header_chunks(i["header"], shape["rows"], W)
                plain, end = self._unpacker.tile(raw, at + head * W, tile_chunks(**shape) - head)
                mant, shift, bias, values = decode_tile(
                    raw[at:at + head * W] + plain.tobytes(), **shape)
                yield Rows(mant, shift, bias, values.reshape(shape["rows"], -1))
                at = end
        except PackingError as error:
            raise ProgramError(f"packed weights that are damaged: {error}") from error
        need(at == len(raw) and not self._unpacker.steps,
             f"packed tiles that end after {at} of {len(raw)} bytes")
