"""The host link as pure data: frames, commands, registers.

The gateware, the host's driver, its model of a board and the tables of ``docs/link.md`` are all
made from what stands here; nothing in this module needs Amaranth.
"""
import json
from collections.abc import Mapping
from enum import IntEnum
from typing import Any, NamedTuple
from zlib import crc32

from ..config import Config
from ..isa import FIELDS, INSTRUCTION_BYTES, MODEL_REGS, Field
from ..run_table import RUN_REGS
from .counters_table import COUNTERS

#: Changes with the frame format, a command or a register.
VERSION = 4

# --- frames ---------------------------------------------------------------------------------------
#: First byte of a frame.
SYNC = 0xA5
#: sync, type, sequence number, length (2 bytes, little endian).
HEADER_BYTES = 5
#: CRC-32 (ISO-HDLC, the one of zlib) over everything between sync and itself, little endian.
CRC_BYTES = 4
#: Longest payload.
MAX_PAYLOAD = 256
#: Longest frame.
MAX_FRAME = HEADER_BYTES + MAX_PAYLOAD + CRC_BYTES
#: Zero bytes that bring a receiver which has lost its place back to looking for a frame: whatever
#: it believes to be in, that many bytes end it, and zero is not ``SYNC``.
FLUSH_BYTES = MAX_FRAME
#: Frame buffers in the board; one is always free to receive into.
SLOTS = 8
#: Frames the host may have sent without having their answers. The slot left over takes a
#: ``CREDIT``, which has no answer.
CREDITS = SLOTS - 2
#: Set in the type of a frame that answers a command.
ANSWER = 0x80


class Command(IntEnum):
    """Frame types, host to board; the answer has ``ANSWER`` added and the same sequence number."""
    READ = 0x01             #: read registers
    WRITE = 0x02            #: write registers
    READ_MEMORY = 0x03      #: read memory through the host window
    WRITE_MEMORY = 0x04     #: write memory through the host window; answered when it is in memory
    CRC_MEMORY = 0x05       #: CRC-32 of a stretch of memory, computed on the chip
    WRITE_PROGRAM = 0x06    #: write instructions
    WRITE_TOKENS = 0x07     #: write token memory
    START = 0x08            #: start the run that the run registers describe
    ABORT = 0x09            #: end the run; its last event follows
    CREDIT = 0x0A           #: acknowledge token events; has no answer


#: Frame type, board to host, unasked: one token event.
TOKEN = 0x40


class CommandInfo(NamedTuple):
    """Payload of a command and of its answer; all numbers little endian.

    arguments: what is in the first words of 4 bytes. rest: what follows. answer: what follows the
    result; None: there is no answer.
    """
    arguments: tuple[str, ...]
    rest: str = ""
    answer: str | None = ""

    @property
    def payload(self) -> str:
        return ", ".join(filter(None, (*self.arguments, self.rest)))


COMMANDS = {
    Command.READ: CommandInfo(("address u32", "count u32"), answer="count x u32"),
    Command.WRITE: CommandInfo(("address u32",), "values u32 ..."),
    Command.READ_MEMORY: CommandInfo(("address u32", "length u32"), answer="length bytes"),
    Command.WRITE_MEMORY: CommandInfo(("address u32",), "bytes"),
    Command.CRC_MEMORY: CommandInfo(("address u32", "length u32"), answer="CRC-32 u32"),
    Command.WRITE_PROGRAM: CommandInfo(
        ("index u32",), f"instructions of {INSTRUCTION_BYTES} bytes"),
    Command.WRITE_TOKENS: CommandInfo(("position u32",), "tokens u32 ..."),
    Command.START: CommandInfo(("run u16, 0 u16",)),
    Command.ABORT: CommandInfo(("run u16, 0 u16",)),
    Command.CREDIT: CommandInfo(("run u16, next index u16",), answer=None),
}


class Result(IntEnum):
    """First byte of every answer."""
    OK = 0              #: done
    BAD_COMMAND = 1     #: no such command
    BAD_LENGTH = 2      #: length does not fit the command, the bus or a burst
    BAD_ADDRESS = 3     #: no such register, or it cannot be written
    BUSY = 4            #: not while a run is under way
    NOT_READY = 5       #: the memory is not ready


#: Token events the board keeps until the host has acknowledged them.
EVENT_RING = 64
#: Payload of a TOKEN frame: run u16, index u16, token u32, crc u32, reason u8.
EVENT_FORMAT = "<HHIIB"
EVENT_BYTES = 13


class Reason(IntEnum):
    """Why a run ended, in its last token event."""
    RUNNING = 0     #: it goes on
    STOP = 1        #: the token is one of the stop ids
    MAX_NEW = 2     #: max_new tokens are out
    CONTEXT = 3     #: the context is full
    ABORTED = 4     #: aborted, or an error: see the error register; the event holds no token
    FILLED = 5      #: max_new was 0: the cache is filled; the event holds no token


# --- registers ------------------------------------------------------------------------------------


class Register(NamedTuple):
    """A register. address: of its first 32-bit word. width: bits, 1..64; above 32 it takes two
    words, low word first. access: "const" (fixed when the core is built), "live" (changes by
    itself), "rw", or "w" (writing acts; reads as what was written)."""
    name: str
    address: int
    width: int
    access: str
    doc: str

    @property
    def words(self) -> int:
        """32-bit words the register takes."""
        return (self.width + 31) // 32


#: Facts of the core (Config fields) in the register file.
CONFIG_REGS = (
    Field("W", 6, "weights per beat"),
    Field("P", 6, "token lanes"),
    Field("bus_bytes", 6, "bytes of a memory bus word"),
    Field("act_words", 16, "activation words per lane"),
    Field("scratch_bytes", 17, "bytes of scratch memory"),
    Field("residual_values", 32, "values of the residual"),
    Field("score_depth", 16, "scores per lane"),
    Field("rope_pairs", 16, "RoPE pairs"),
    Field("tile_beats", 16, "beats of a tile"),
    Field("tile_rows", 8, "rows of a tile"),
    Field("fifo_words", 32, "bus words of run-ahead"),
    Field("prog_depth", 17, "instructions"),
    Field("context", 13, "positions"),
    Field("burst_words", 16, "bus words of a burst; a memory frame is at most one"),
    Field("topk", 6, "longest top_k"),
    Field("packing", 2, "packed weights: bit 0 entropy-coded, bit 1 MEADOW's"),
    Field("unpack_cycles", 3, "cycles that packed weights or blocks take to give W weights"),
    Field("sv_cycles", 4, "cycles that a lane takes for a beat in SV"),
    Field("vector_products", 5, "multipliers of the vector unit"),
    Field("block_modes", 1, "1: reads blocks of GGUF files"),
    Field("batches", 8, "bit 0: passes with logits of each token: batches, drafts; from bit 1 on, "
                        "what most cores have not: " + ", ".join(Config.EXTRAS)),
)
NAME_BYTES = 16

#: Words below this are constants, then come the live ones, then those that can be written.
LIVE_BASE, CONTROL_BASE, RUN_BASE = 0x20, 0x28, 0x30
#: Words of the register file; all of it fits one block RAM.
REGISTER_WORDS = 128
#: Counter i reads as the words COUNTER_BASE + 2*i (low 32 bits) and + 1 (the rest, taken at the
#: moment the low word was read).
COUNTER_BASE = 0x100

MAGIC = int.from_bytes(b"LARK", "little")
#: Written to ``reset`` to reset the core.
RESET_MAGIC = 0x52455354
#: Names the instruction set, so that an image for another one is refused.
ISA_CRC = crc32(json.dumps([(f.name, f.bits) for f in (*FIELDS, *MODEL_REGS)]).encode())
#: Names the performance counters in the same way.
COUNTERS_CRC = crc32(json.dumps([c.name for c in COUNTERS]).encode())


def config_facts(config: Config) -> dict[str, int]:
    """Values of :data:`CONFIG_REGS`. There is no room for one more."""
    facts = config.as_dict()
    extras = sum(facts.pop(name, False) << k for k, name in enumerate(Config.EXTRAS, 1))
    return facts | {"batches": facts["batches"] | extras}


def config_of(facts: Mapping[str, int]) -> Config:
    """Inverse of :func:`config_facts`. Raises ValueError: there is no such core."""
    sizes: dict[str, Any] = {f.name: bool(facts[f.name]) if f.bits == 1 else facts[f.name]
                             for f in CONFIG_REGS}
    return Config(**sizes | {name: bool(facts["batches"] >> k & 1)
                             for k, name in enumerate(("batches", *Config.EXTRAS))})


def _table() -> tuple[Register, ...]:
    out: list[Register] = []

    def group(base: int, end: int, access: str, fields) -> None:
        at = base
        for f in fields:
            out.append(Register(f.name, at, f.bits, access, f.doc))
            at += out[-1].words
        if at > end:
            raise ValueError(f"registers end at {at:#x}, beyond {end:#x}")

    group(0, LIVE_BASE, "const", (
        Field("magic", 32, 'the bytes "LARK"'),
        Field("version", 16, "version of this protocol"),
        Field("isa", 32, "CRC-32 that names the instruction set"),
        *CONFIG_REGS,
        Field("clock_khz", 32, "core clock"),
        Field("memory_kib", 32, "size of the memory"),
        Field("counters", 32, "CRC-32 that names the performance counters"),
        *(Field(f"name_{i}", 32, "name of the board, ASCII, padded with zeros")
          for i in range(NAME_BYTES // 4)),
        Field("only", 32, "CRC-32 that names the one model the core is for; 0: any"),
    ))
    group(LIVE_BASE, CONTROL_BASE, "live", (
        Field("status", 2, "bit 0: a run is under way; bit 1: the memory is ready"),
        Field("error", 8, "why the last run failed (control/errors.py)"),
        Field("error_pc", 16, "instruction at fault"),
        Field("run", 16, "number of the last run that was started"),
        Field("events", 16, "token events of that run so far"),
        Field("frames_bad", 16, "frames with a wrong CRC or length, modulo 65536"),
        Field("frames_dropped", 16, "good frames that found no free buffer, modulo 65536"),
    ))
    group(CONTROL_BASE, RUN_BASE, "rw", (
        Field("resend_cycles", 32, "cycles without an acknowledgement until events are re-sent"),
    ))
    out.append(Register("reset", out[-1].address + 1, 32, "w",
                        f"{RESET_MAGIC:#x} resets the core; the link stays"))
    group(RUN_BASE, 0x50, "rw", MODEL_REGS)
    group(0x50, REGISTER_WORDS - 4, "rw", RUN_REGS)
    out.append(Register("place", out[-1].address + 1, 53, "w",
                        "where a token of a batch belongs. Low word: chunks from the cache of the "
                        "image's addresses to that of its sequence, 27 bits; of slot 0 in a run of "
                        "one sequence as well. High word, which acts: bits 12:0 position, bits "
                        "20:16 slot"))
    out.append(Register("lane_seed", out[-1].address + 2, 53, "w",
                        "seed of a slot of a batch. Low word: what the run's hashed seed is xored "
                        "with. High word, which acts: bits 20:16 slot"))
    return tuple(out)


#: Every register, by address.
REGISTERS = _table()
#: Name -> Register.
BY_NAME = {r.name: r for r in REGISTERS}
STATUS_BUSY, STATUS_READY = 1, 2
