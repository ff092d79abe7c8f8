"""The model image: one file with program, packed memory, tokenizer, and what they were made for."""
from __future__ import annotations

import io
import json
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple
from zlib import crc32

import numpy as np

from meadowlark_hdl.config import Config
from meadowlark_hdl.only import Only
from meadowlark_hdl.draft.context_match_golden import SHORTEST
from meadowlark_hdl.draft.drafter_golden import NEVER
from meadowlark_hdl.draft.table_lookup_golden import BUCKET_BYTES
from meadowlark_hdl.isa import (INSTRUCTION_BYTES, MODEL_REGS, Header, Instruction, Mode, Op,
                                Src, decode, fault)

from meadowlark_hdl.link.protocol import ISA_CRC
from meadowlark_hdl.weights.decoder_golden import encode_tile
from meadowlark_hdl.weights.modes import BLOCK_MODES, Packing

from ..draft.table import entries_of
from ..errors import UserError, brief
from ..files import write_atomic
from ..models.metadata import MAX_WORD
from ..models.pictures import Pictures
from ..text.chat import ChatTemplate
from .layout import ALIGN, cuts

if TYPE_CHECKING:
    from meadowlark_boards import Board

MAGIC = b"MEADOWLK"
VERSION = 9
#: magic, version, bytes of the JSON header, CRC-32 of everything else before the sections.
_PREFIX = struct.Struct("<8sIII")
_SECTIONS = ("program", "memory", "tokenizer", "chat")
#: Longest JSON header, in bytes; it takes some 3 kB.
MAX_HEADER = 1 << 20
_AGAIN = "compile the model again"
#: Config fields that the layout depends on; they must equal the core's.
EXACT = ("W", "P", "tile_beats")
#: What a core must have at least, by Config field; ``memory_bytes`` is of the board.
NEEDS = ("act_words", "scratch_bytes", "residual_values", "rope_pairs", "score_depth", "context",
         "prog_depth", "tile_rows", "memory_bytes")
#: What an image that needs one of :data:`.Config.EXTRAS` does, and what helps who has none.
_EXTRAS = {
    "gemm": ("does attention by GEMM", "compile the model without --attention"),
    "tight_keys": ("has keys of any number of words", "compile the model for that board"),
    "fences": ("stops in front of operators", "compile the model without --fence"),
    "unified": ("has a unified maximum", "compile the model without --maximum"),
    "lane_pairs": ("has query heads on several lanes",
                   "compile the model for that board, or with --lanes direct"),
    "softcap": ("has soft caps of scores or logits", "compile the model for a board that has"),
}
_SHAPE = ("hidden", "layers", "heads", "kv_heads", "head_dim", "value_dim", "head_pad", "ffn",
          "vocab", "context")
_FACTS = ("parameters", "layer_bytes", "tail_bytes", "embedding_bytes", "layer_macs", "tail_macs",
          "tail_attends", "batch")
#: Facts of images with a unified maximum alone.
_OF_SOME = ("missed",)


@dataclass(frozen=True, kw_only=True)
class Vision:
    """Of an encoder of images: what it is shown, and how its patches get to the board.

    at: where they are in memory, a tile a token, in bytes. stride: of these. fraction: fractional
    bits of their values.
    """
    at: int
    stride: int
    fraction: int
    pictures: Pictures

    def tiles(self, codes: np.ndarray, W: int) -> bytes:
        """int16[tokens, width] as they lie in memory."""
        one = dict(mant=np.array([1 << 15]), shift=np.array([15]))
        tiles = [encode_tile(row[None], **one, W=W, mode=Mode.INT16, header=Header.SCALE)
                 for row in codes]
        assert {len(tile) for tile in tiles} == {self.stride}
        return b"".join(tiles)


class Visit(NamedTuple):
    """Of all tokens of an image by a part of the program, see :mod:`.spill`. pc: where its list
    begins. stream_addr: the first chunk of its weights."""
    pc: int
    stream_addr: int

    def regs(self, model_regs: Mapping[str, int]) -> dict[str, int]:
        """Model registers with which a pass runs its list."""
        return {**model_regs, "prefill_pc": self.pc, "decode_pc": self.pc,
                "stream_addr": self.stream_addr}


class Run(NamedTuple):
    """One of those that an image takes, a pass each if it is spilled.

    model_regs: all of them. tokens: ids. start_pos: position of the first one. base: chunks from
    the cache's addresses to what the pass sees. final: it gives the class.
    """
    model_regs: Mapping[str, int]
    tokens: Sequence[int]
    start_pos: int
    base: int
    final: bool


def is_image(path: str | Path) -> bool:
    """It is a file and begins as images do."""
    try:
        with open(path, "rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def board_of(path: str | Path) -> str:
    """Name of the board that an image was made for; of the file only the header is read.

    Raises UserError as :meth:`Image.load` does.
    """
    with _opened(path) as (file, length), _sense(str(path)):
        return _text(_header(file, length, str(path))[0], "board")


@dataclass(frozen=True, kw_only=True)
class Image:
    """Everything a board is loaded with.

    Parameters
    ----------
    name : str
        The model's name, for people.
    board : str
        Name of the board it was compiled for, for people; what counts is ``config``.
    config : dict
        ``Config.as_dict()`` of the core it was laid out for.
    needs : dict of int
        Envelope: the least a core must have, by name (:data:`NEEDS`).
    model_regs : dict of int
        Value of each of ``isa.MODEL_REGS``.
    shape : dict of int
        Dimensions of the model (:class:`meadowlark.compile.layout.Shape`).
    facts : dict of int
        Parameters, useful bytes and products of a pass, for statistics and utilisation. batch:
        tokens of several sequences that a pass takes, at most.
    program : bytes
        Instructions of ``isa.INSTRUCTION_BYTES`` bytes; prefill list, then decode list.
    memory : bytes
        External memory from chunk 0: weight stream, table of drafts, RoPE tables, embedding table.
        The KV cache follows and needs no contents.
    tokenizer : bytes
        ``tokenizer.json``; may be empty.
    chat : ChatTemplate or None
        The model's chat template.
    bos_id : int or None
        Token every text begins with.
    stop_ids : tuple of int
        Tokens that end a text.
    tensors : tuple of dict
        For each matrix of the stream, in order: its name, how it is packed (mode: raw, meadow,
        entropy; how: for people), weights, where in memory it starts, bytes of its codes plain and
        as they are, entropy of these in bits a byte.
    vision : Vision, optional
        Of an encoder of images.
    visits : tuple of Visit
        Of an encoder whose tokens are more than a pass takes; the last one is a decode of the last
        token. Else there are none.
    draft : dict, optional
        Of the table of drafts in the memory, for people: entries that are there, model and made_of
        as :class:`meadowlark.draft.table.DraftTable` has them.
    """
    name: str
    board: str
    config: dict
    needs: dict
    model_regs: dict
    shape: dict
    facts: dict
    program: bytes
    memory: bytes
    tokenizer: bytes
    chat: ChatTemplate | None = None
    bos_id: int | None = None
    stop_ids: tuple[int, ...] = ()
    tensors: tuple[dict, ...] = ()
    vision: Vision | None = None
    visits: tuple[Visit, ...] = ()
    draft: dict | None = None

    @property
    def runs(self) -> Iterator[Run]:
        """Those that classify an image: one, or one for each block of tokens of each visit.

        A spilled pass stands at the last positions, so that it sees as many keys as there are
        tokens; its ids say which tokens it has. The cache has the keys of all tokens twice, one
        after the other, so that any base has all of them behind it.
        """
        regs, n = self.model_regs, self.context
        if not self.visits:
            yield Run(regs, [0] * n, 0, 0, True)
            return
        sizes = cuts(n, regs["blocks"] * self.config["P"])
        row = (1 << regs["head_log2"]) // self.config["W"]
        for visit in self.visits:
            final = visit is self.visits[-1]
            of_visit = visit.regs(regs)
            if not final:                           # ids that are tokens
                of_visit["vocab"] = max(regs["vocab"], n)
            ends = [n] if final else np.cumsum(sizes).tolist()
            for end, size in zip(ends, [1] if final else sizes):
                tokens = [0] if final else range(end - size, end)
                yield Run(of_visit, tokens, n - size, (end - sizes[0]) * row, final)

    @property
    def cache_bytes(self) -> int:
        """Bytes of a sequence's KV cache, a multiple of a chunk. That of sequence 0 follows the
        image, the next one that."""
        return self.needs["memory_bytes"] - len(self.memory)

    def base(self, sequence: int) -> int:
        """Chunks from the first KV cache to that of a sequence."""
        return sequence * self.cache_bytes // self.config["W"]

    def sequences(self, memory_bytes: int) -> int:
        """KV caches that a memory holds."""
        return (memory_bytes - len(self.memory)) // self.cache_bytes

    def most_together(self, turns: int) -> int:
        """Sequences of a pass at most; turns: of the core's Config."""
        return min(self.facts["batch"], turns)

    @property
    def context(self) -> int:
        """Tokens the KV cache holds."""
        return self.shape["context"]

    @property
    def instructions(self) -> list[Instruction]:
        """The whole program; prefill starts at ``model_regs["prefill_pc"]``."""
        return [decode(self.program[at:at + INSTRUCTION_BYTES])
                for at in range(0, len(self.program), INSTRUCTION_BYTES)]

    @cached_property
    def listed(self) -> list[Instruction]:
        """:attr:`instructions`, for those who read them and change none: decoded once."""
        return self.instructions

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return sum(map(len, self._parts()))

    def __repr__(self) -> str:
        """One line: all of it is as long as its memory."""
        return f"<image of {self.name} for {self.board}, {self.size:,} bytes>"

    @property
    def parameters(self) -> int:
        """Parameters of the model; a tied head counts once."""
        return self.facts["parameters"]

    @property
    def caches(self) -> list[tuple[int, int]]:
        """Where the KV cache lies in memory: byte address of position 0, and bytes of a position,
        of the keys of each KV head, then of their values, an attention after the other. Values of
        a wide head are several, of some columns each."""
        W, stores = self.config["W"], self._decodes(Op.STORE)
        return [*dict.fromkeys((i["addr"] * W, i["row_beats"] * W) for i in stores)]

    @cached_property
    def backs(self) -> list[int]:
        """How many keys before its own a token sees, of each attention."""
        found = [*self._keys.values()]
        return found[::len(found) // self.shape["layers"]]

    @cached_property
    def _rotations(self) -> int:
        """RoPE tables that a pass takes rows of."""
        return len(self._decodes(Op.ROPE))

    @property
    def _keys(self) -> dict[int, int]:
        """Address of the keys of each KV head -> how many before its own a token sees, in order."""
        found: dict[int, int] = {}
        for i in self._decodes(Op.QK):
            found[i["addr"]] = max(i["back"], found.get(i["addr"], 0))
        return found

    def _decodes(self, op: Op) -> list[Instruction]:
        """Instructions of the decode list with an operator, or of all visits."""
        begin = 0 if self.visits else self.model_regs["decode_pc"]
        return [i for i in self.listed[begin:] if i["op"] == op]

    def place(self, pc: int) -> str:
        """What an instruction reads, for a sentence: tensor and address, as far as it is known."""
        program, decode_pc = self.listed, self.model_regs["decode_pc"]
        at = self.model_regs["stream_addr"]
        for i in program[decode_pc if pc >= decode_pc and not self.visits else 0:pc]:
            if i["src"] == Src.STREAM:
                at += (i["tiles"] - 1) * i["chunks"] + i["last_chunks"]
        at *= self.config["W"]
        before = [t["name"] for t in self.tensors if t["at"] <= at]
        where = f", {before[-1]} at byte {at:,} of the memory" if before else ""
        return f"instruction {pc}{where}"

    @property
    def needs_packing(self) -> int:
        """Packings in use, as ``Config.packing`` has them."""
        modes = {t["mode"] for t in self.tensors}
        return sum(packing for packing in Packing if packing.label in modes)

    @property
    def needs_blocks(self) -> bool:
        """Some tiles are blocks of GGUF files."""
        return any(i["src"] != Src.NONE and i["mode"] in BLOCK_MODES for i in self.listed)

    @property
    def extras(self) -> set[str]:
        """Of :data:`.Config.EXTRAS`, those that it needs."""
        return {name for name in _EXTRAS if self.config.get(name)}

    @property
    def bits_per_weight(self) -> float:
        """Bits of external memory (codes, scales, tables, padding; no KV cache, no drafts) a
        parameter."""
        return 8 * (len(self.memory) - self.draft_bytes) / self.parameters

    @property
    def draft_bytes(self) -> int:
        """Of the table of drafts, 0 without one."""
        return BUCKET_BYTES * self.model_regs["draft_buckets"]

    @property
    def draft_least(self) -> int:
        """Tokens of the context's match that stand before the table."""
        return self.model_regs["draft_least"]

    @property
    def draft_entries(self) -> np.ndarray | None:
        """The table of drafts, uint32[buckets, 4]."""
        if not self.draft_bytes:
            return None
        at = self.config["W"] * self.model_regs["draft_addr"]
        return entries_of(self.memory[at:at + self.draft_bytes], self.shape["vocab"])

    def bytes_per_token(self, context: int) -> int:
        """Useful bytes of a decode pass that sees ``context`` tokens (1..): see
        :meth:`useful_bytes`."""
        return self.useful_bytes(pos0=context - 1, n=1, final=True)

    def useful_bytes(self, *, pos0: int, n: int, final: bool) -> int:
        """Bytes a pass over tokens pos0..pos0+n-1 must move, each once: weights, scales, gammas,
        embedding and RoPE rows, KV cache written, and read as far as windows go; no padding, no
        repeated read.

        final : bool
            The pass computes logits, so it has a tail: what is for its last token only.
        """
        s, f = self.shape, self.facts
        kv = s["kv_heads"] * (s["head_dim"] + s["value_dim"])
        row = f["embedding_bytes"] + 2 * s["head_dim"] * self._rotations
        attends = self.backs[:None if final else s["layers"] - f["tail_attends"]]
        read = sum(pos0 + n - max(0, pos0 - back) for back in attends)
        return (f["layer_bytes"] + n * row + kv * read + kv * s["layers"] * n
                + (f["tail_bytes"] if final else 0))

    @property
    def shared_bytes(self) -> int:
        """Those of :meth:`useful_bytes` that tokens of a final pass share: weights and scales."""
        return self.facts["layer_bytes"] + self.facts["tail_bytes"]

    def useful_macs(self, *, pos0: int, n: int, final: bool) -> int:
        """Products of a pass that are not masked: linear layers, the tail for one token, and
        query x key, probability x value for each key a token sees. final: see
        :meth:`useful_bytes`."""
        s, f = self.shape, self.facts
        every = s["layers"] - f["tail_attends"]
        tokens, last = range(pos0, pos0 + n), pos0 + n - 1
        if self.vision is not None:         # each sees all
            tokens = [last] * n
        seen = sum(min(p, back) + 1 for back in self.backs[:every] for p in tokens)
        if final:
            seen += sum(min(last, back) + 1 for back in self.backs[every:])
        return (f["layer_macs"] * n + (f["tail_macs"] if final else 0)
                + s["heads"] * (s["head_dim"] + s["value_dim"]) * seen)

    @property
    def only(self) -> Only:
        """What a core for this model alone knows of it."""
        return Only.of(self.program, self.model_regs)

    def check_board(self, board: Board) -> None:
        """Raise UserError unless the board's core can run this image as it is laid out."""
        self.check_config(board.config, memory_bytes=board.memory.size_bytes, name=board.name,
                          only=board.config.only_crc)

    def check_config(self, config: Config, *, memory_bytes: int, name: str = "", only: int = 0,
                     ) -> None:
        """As :meth:`check_board`, for a core that answered with its Config. only: what names the
        model that it is for, 0: any."""
        core = f"the board {name}" if name else "this board"
        if only and only != self.only.crc:
            raise UserError(f"{core} has a core for one model, and this image is of another one, "
                            "or of the same compiled with other options; load the bitstream for "
                            "all models, or make one with `meadowlark build --for`")
        for field in EXACT:
            has = getattr(config, field)
            if self.config[field] != has:
                raise UserError(
                    f"the image was compiled for a core with {field} = {self.config[field]} "
                    f"(board {self.board}), but {core} has {field} = {has}; compile the model for "
                    "that board")
        if self.needs_packing & ~config.packing:
            raise UserError(f"the image holds packed weights that {core} cannot read; compile the "
                            "model for that board")
        lanes = Config(**self.config).unpack_lanes
        if self.needs_packing and lanes != config.unpack_lanes:
            raise UserError(f"the image holds weights packed for {lanes} lanes, but {core} unpacks "
                            f"{config.unpack_lanes}; compile the model for that board")
        for name in sorted(self.extras):
            # How many lanes is in the instructions.
            if not getattr(config, name) or name == "lane_pairs" and (
                    config.sv_cycles != self.config["sv_cycles"]):
                what, instead = _EXTRAS[name]
                raise UserError(f"the image {what}, which {core} cannot; {instead}")
        if self.needs_blocks and not config.block_modes:
            raise UserError(f"the image holds weights in blocks, as GGUF files have them, that "
                            f"{core} cannot read; compile the model for that board")
        for field in NEEDS:
            has = memory_bytes if field == "memory_bytes" else getattr(config, field)
            if self.needs[field] > has:
                raise UserError(f"the image needs {field} = {self.needs[field]}, but {core} has "
                                f"{has}; compile the model for that board")

    def _parts(self) -> list[bytes]:
        chat = b"" if self.chat is None else self.chat.as_json()
        data = dict(zip(_SECTIONS, (self.program, self.memory, self.tokenizer, chat), strict=True))
        sections, at = {}, 0
        for name, raw in data.items():
            sections[name] = {"offset": at, "size": len(raw), "crc32": crc32(raw)}
            at += len(raw)
        header = json.dumps({
            "isa": ISA_CRC, "name": self.name, "board": self.board, "bos_id": self.bos_id,
            "stop_ids": self.stop_ids, "config": self.config,
            "needs": self.needs, "model_regs": self.model_regs, "shape": self.shape,
            "facts": self.facts, "tensors": self.tensors, "draft": self.draft,
            "vision": None if self.vision is None else {
                **vars(self.vision), "pictures": self.vision.pictures.as_dict()},
            **({"visits": self.visits} if self.visits else {}), "sections": sections},
            indent=1).encode() + b"\n"
        lead = _PREFIX.pack(MAGIC, VERSION, len(header), 0)
        check = crc32(header, crc32(lead[:-4]))
        return [lead[:-4] + struct.pack("<I", check), header, *data.values()]

    def save(self, path: str | Path) -> None:
        """Write the image; see :func:`meadowlark.files.write_atomic`."""
        write_atomic(path, *self._parts())

    @classmethod
    def load(cls, path: str | Path) -> Image:
        """Read a file and check all of it: magic, version, sizes, checksums, contents.

        Raises
        ------
        UserError
            It is not an image of this version, or it is damaged; one sentence.
        """
        with _opened(path) as (file, length):
            return cls._read(file, length, str(path))

    @classmethod
    def parse(cls, raw: bytes, *, name: str = "image") -> Image:
        """As :meth:`load`, from the file's contents."""
        return cls._read(io.BytesIO(raw), len(raw), name)

    @classmethod
    def _read(cls, file: BinaryIO, length: int, name: str) -> Image:
        """From a file of ``length`` bytes, of which no more is read than makes sense so far."""
        with _sense(name):
            header, left = _header(file, length, name)
            return cls._from_header(header, file, left, name)

    @classmethod
    def _from_header(cls, header: dict, file: BinaryIO, length: int, name: str) -> Image:
        """The sections follow in ``file``, ``length`` bytes."""
        sizes, end = {}, 0
        for section in _SECTIONS:
            offset, size = (_whole(header["sections"][section], key) for key in ("offset", "size"))
            if offset != end:
                raise ValueError(f"section {section} at {offset}, not {end}")
            end = offset + size
            sizes[section] = size
        if end != length:
            raise UserError(f"{name} is {'truncated' if end > length else 'too long'}: its "
                            f"sections have {end} bytes, {length} are there; {_AGAIN}")
        if sizes["memory"] > _whole(header["needs"], "memory_bytes"):
            raise ValueError(f"a memory of {sizes['memory']} bytes")
        data = {section: file.read(size) for section, size in sizes.items()}
        for section, content in data.items():
            if crc32(content) != header["sections"][section]["crc32"]:
                raise UserError(f"{name} is damaged: the checksum of its {section} is wrong; "
                                f"{_AGAIN}")
        if header["isa"] != ISA_CRC:
            raise UserError(f"{name} is for another instruction set; {_AGAIN}")
        config = dict(header["config"])
        if Config(**config).as_dict() != config:    # refuses what is no core
            raise ValueError("a config with missing fields")
        chat = data.pop("chat")
        regs = {f.name: _whole(header["model_regs"], f.name, 1 << f.bits) for f in MODEL_REGS}
        image = cls(
            name=_text(header, "name"), board=_text(header, "board"), config=config,
            needs={key: _whole(header["needs"], key) for key in NEEDS}, model_regs=regs,
            shape={key: _whole(header["shape"], key) for key in _SHAPE},
            facts={key: _whole(header["facts"], key) for key in (*_FACTS, *(
                name for name in _OF_SOME if name in header["facts"]))},
            bos_id=None if header["bos_id"] is None else _whole(header, "bos_id"),
            stop_ids=tuple(_whole(ids, i) for ids in [header["stop_ids"]] for i in range(len(ids))),
            chat=ChatTemplate.from_json(chat, name) if chat else None,
            tensors=tuple(map(_tensor, header["tensors"])),
            vision=None if header["vision"] is None else _vision(header["vision"]),
            visits=tuple(Visit(*(_whole(visit, k) for k in range(2)))
                         for visit in header.get("visits", ())),
            draft=None if header["draft"] is None else _draft(header["draft"]), **data)
        image._check_program()
        image._check_sizes()
        return image

    def _check_program(self) -> None:
        """ValueError unless the program is one that the core can walk."""
        if len(self.program) % INSTRUCTION_BYTES or not self.program:
            raise ValueError(f"a program of {len(self.program)} bytes")
        program = self.instructions
        for at, i in enumerate(program):
            Op(i["op"]), Src(i["src"]), Mode(i["mode"]), Header(i["header"])
            if (why := fault(i)) is not None:
                raise ValueError(f"instruction {at}: {why}")
            if i["src"] != Src.NONE and not (i["rows"] and i["row_beats"] and i["chunks"]):
                raise ValueError(f"an empty tile at instruction {at}")
        if program[-1]["op"] != Op.END or program[-1]["last"]:
            raise ValueError("the program does not end")
        for list_ in ("prefill_pc", "decode_pc"):
            if self.model_regs[list_] >= len(program):
                raise ValueError(f"{list_} {self.model_regs[list_]}")
        if self.visits and (self.vision is None or any(
                visit.pc >= len(program) or visit.pc and program[visit.pc - 1]["op"] != Op.END
                for visit in self.visits)):
            raise ValueError(f"visits {self.visits}")
        if not self.facts["parameters"]:
            raise ValueError("no parameters")


    def _check_sizes(self) -> None:
        """ValueError unless its dimensions are possible and agree with each other."""
        shape, regs, needs = self.shape, self.model_regs, self.needs
        for name, value in shape.items():
            if not value:
                raise ValueError(f"{name} is 0")
        for name, value, other in (
                ("context", shape["context"], needs["context"]),
                ("vocab", shape["vocab"], regs["vocab"]),
                ("head_pad", shape["head_pad"], 1 << regs["head_log2"]),
                ("prog_depth", len(self.program) // INSTRUCTION_BYTES, needs["prog_depth"])):
            if value != other:
                raise ValueError(f"{name} is {value} and {other}")
        attentions = len(self._keys)
        if not attentions or attentions % shape["layers"]:
            raise ValueError(f"{attentions} caches of keys in {shape['layers']} layers")
        for token in (*self.stop_ids, self.bos_id or 0):
            if token >= shape["vocab"]:
                raise ValueError(f"token {token} of {shape['vocab']}")
        if (vision := self.vision) is not None:
            pictures, W = vision.pictures, self.config["W"]
            if (pictures.tokens, len(pictures.labels)) != (shape["context"], shape["vocab"]) or \
                    vision.stride % W or vision.stride < 2 * pictures.width or vision.at % W or \
                    vision.at + pictures.tokens * vision.stride > len(self.memory):
                raise ValueError(f"patches of {pictures.tokens} tokens at {vision.at}")
        if (self.draft is None) is not (self.draft_bytes == 0):
            raise ValueError(f"{self.draft_bytes} bytes of drafts")
        if self.draft is not None:
            at = self.config["W"] * regs["draft_addr"]
            if at % ALIGN or at + self.draft_bytes > len(self.memory):
                raise ValueError(f"{self.draft_bytes} bytes of drafts at {at}")
            if not SHORTEST <= self.draft_least <= NEVER:
                raise ValueError(f"draft_least {self.draft_least}")
            entries_of(self.memory[at:at + self.draft_bytes], shape["vocab"])
        # What one read of a decode pass takes at least: no dimension is beyond the memory.
        if max(shape["hidden"], shape["ffn"], shape["vocab"]) > len(self.memory):
            raise ValueError(f"a memory of {len(self.memory)} bytes")


@contextmanager
def _opened(path: str | Path) -> Iterator[tuple[BinaryIO, int]]:
    """The file and its length in bytes."""
    try:
        with open(path, "rb") as file:
            yield file, os.fstat(file.fileno()).st_size
    except OSError as error:
        raise UserError(f"cannot read the image {path}: {error.strerror or error}") from error


@contextmanager
def _sense(name: str) -> Iterator[None]:
    """What fails in here fails because of what the header says."""
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{name} has a header that makes no sense ({brief(error)}); {_AGAIN}"
                        ) from error


def _header(file: BinaryIO, length: int, name: str) -> tuple[Any, int]:
    """The header of a file of ``length`` bytes, as its JSON stands for; bytes behind it."""
    lead = file.read(_PREFIX.size)
    if lead[:len(MAGIC)] != MAGIC:
        raise UserError(f"{name} is not a Meadowlark image; make one with meadowlark compile")
    if len(lead) < _PREFIX.size:
        raise UserError(f"{name} is truncated after {len(lead)} bytes; {_AGAIN}")
    _, version, size, check = _PREFIX.unpack(lead)
    if version != VERSION:
        raise UserError(f"{name} has image version {version}, this program reads version "
                        f"{VERSION}; {_AGAIN}")
    left = length - _PREFIX.size
    if size > left:
        raise UserError(f"{name} is truncated: its header has {size} bytes, {left} are there; "
                        f"{_AGAIN}")
    if size > MAX_HEADER:
        raise UserError(f"{name} is damaged: its header has {size} bytes; {_AGAIN}")
    text = file.read(size)
    if crc32(text, crc32(lead[:-4])) != check:
        raise UserError(f"{name} is damaged: the checksum of its header is wrong; {_AGAIN}")
    return json.loads(text), left - size


def _whole(table: Any, key: str | int, limit: int = 1 << 63) -> int:
    value = table[key]
    if type(value) is not int or not 0 <= value < limit:
        raise ValueError(f"{key} is {value!r}")
    return value


def _tensor(table: dict) -> dict:
    found: dict = {key: _text(table, key) for key in ("name", "mode", "how")}
    found |= {key: _whole(table, key) for key in ("weights", "at", "raw_bytes", "bytes")}
    if found["mode"] not in ("raw", "meadow", "entropy") or not (found["weights"]
                                                                 and found["bytes"]):
        raise ValueError(f"a tensor {found!r}")
    return found | {"entropy": float(table["entropy"])}


def _draft(table: dict) -> dict:
    found: dict = {key: _text(table, key) for key in ("model", "made_of")}
    return found | {"entries": _whole(table, "entries")}


def _vision(table: dict) -> Vision:
    return Vision(pictures=Pictures.from_dict(table["pictures"]), fraction=_whole(
        table, "fraction", 32), **{key: _whole(table, key) for key in ("at", "stride")})


def _text(table: dict, key: str) -> str:
    if not isinstance(table[key], str) or len(table[key]) > MAX_WORD:
        raise ValueError(f"{key} is no short text")
    return table[key]
