"""Golden model of the program: what Issue, TilingEngine and VectorUnit make of an image, in NumPy.

It knows instructions, tiles, lanes and memories (docs/architecture.md) and nothing of the model
behind them. Every number is that of a block's golden model. Equal logits from here and from the
model in integers mean that layout and program are right; equal ones from here and from the
gateware, that the gateware is.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import takewhile

import numpy as np

from .compute.glu_golden import alone, glu
from .compute.norm_golden import rmsnorm
from .compute.requant_golden import requant
from .compute.rope_golden import rope
from .compute.softcap_golden import softcap
from .compute.softmax_golden import (MASKED, output_scale, probabilities, saturated, scores,
                                     spilled)
from .compute.tiling_engine_golden import FLOATS_KEPT, broadcast, diagonal, dot
from .config import Config
from .control.fetch_golden import (GoldenTiles, blamed, check_instruction, check_model, last_sv,
                                   need, stream_chunks)
from .control.sequencer_golden import Lots, Pass, subgroups
from .memories_golden import GoldenMemories
from .isa import Fn, Instruction, Op, Pair, Sink, Src, cap_of

#: Bits that hold what an operator of the vector unit gives before its last saturation.
WIDE = 34


class GoldenCore(GoldenMemories):
    """A core with an image loaded.

    Its memories start full of noise, so that what is read before it is written shows. STOREs take
    as long as they may: scratch memory is read when an instruction waits for them, as a KV and the
    end of the pass always do. Lanes without a token of their own, which hold anything, are left
    out.

    Parameters
    ----------
    config : Config
    program : sequence of Instruction
    model : mapping of str to int
        Value of each of ``isa.MODEL_REGS``.
    memory : bytes
        External memory from chunk 0.
    memory_bytes : int
        All of it, with the KV cache.
    seed : int
        Of the noise.

    Attributes
    ----------
    memory : uint8[memory_bytes]
    tiles : GoldenTiles

    Raises
    ------
    ProgramError
        The registers do not fit the config. From what runs: see :class:`ProgramError`.
    """

    def __init__(self, config: Config, *, program: Sequence[Instruction],
                 model: Mapping[str, int], memory: bytes, memory_bytes: int,
                 seed: int = 0) -> None:
        super().__init__(config, model, memory_bytes)
        self.program = program
        self.head = 1 << model["head_log2"]
        need(len(memory) <= memory_bytes, "model registers that cannot be: memory")
        check_model(config, model)
        rng = np.random.default_rng(seed)
        self.memory = np.concatenate([
            np.frombuffer(memory, np.uint8),
            rng.integers(0, 256, memory_bytes - len(memory), np.uint8)])
        self._loaded = len(memory)
        weights = config.W * sum(i["tiles"] * i["rows"] * i["row_beats"]
                                 for i in program[model["decode_pc"]:] if i["src"] == Src.STREAM)
        self.tiles = GoldenTiles(config, self.memory, floats=weights <= FLOATS_KEPT)
        self._fill_memories(rng)
        self._rope = rng.integers(-1 << 15, 1 << 15, (self.slots, self.head // 2, 2))
        self._stores: list[tuple[Instruction, Pass]] = []       # still under way
        self._execute: dict[Op, Callable[[Instruction], None]] = {
            Op.EMBED: self._embed, Op.ROPE: self._angles, Op.NORM: self._norm,
            Op.LINEAR: self._linear, Op.STORE: self._store}
        self.clear()

    def clear(self) -> None:
        super().clear()
        self.tiles.chunks_read = 0

    @property
    def counters(self) -> dict[str, int]:
        """Those of the core that do not depend on time (``link/counters_table.py``), since
        :meth:`clear` or the start of :meth:`generate`."""
        return self._counts | {
            "bus_read_words": self.tiles.chunks_read * self.config.bus_per_chunk}

    def run(self, p: Pass, tokens: Sequence[int]) -> np.ndarray | None:
        self._pass, self._tokens = p, tokens
        self._logits = np.full((p.n if p.each else 1, self.model["vocab"]), 1 << 40)
        self.tiles.rewind(self.model["stream_addr"])
        pc = self.model["decode_pc" if p.decode else "prefill_pc"]
        while True:
            with blamed(pc):
                i = self._fetched(pc)
                if i["wait"]:
                    self._complete_stores()
            if i["op"] == Op.END and not (i["last"] and p.final):
                break
            if i["op"] == Op.QK:
                pc = self._attend(pc)
            elif i["op"] != Op.END:         # one that is passed over is none
                with blamed(pc):
                    need(i["op"] != Op.SV, "SV without its QK")
                    self._execute[Op(i["op"])](i)
                    self._counts["instructions"] += 1
            pc += 1
        with blamed(pc):
            self._complete_stores()
            need(not p.final or bool((self._logits < 1 << 40).all()),
                 "a row of the head is missing")
        self._counts["instructions"] += 1
        self._counts["passes"] += 1
        return self._logits.astype(np.int32) if p.final else None

    def _fetched(self, pc: int) -> Instruction:
        """An instruction, if there is one whose results can be as it asks."""
        need(pc < len(self.program), "the list runs past the program's end")
        check_instruction(self.config, self.program[pc])
        return self.program[pc]

    def read_stream(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Decode all weights now, instead of each at its first use. Counters are 0 after it.

        progress: gets the chunks done, and all of them.
        """
        for pc in (self.model["prefill_pc"], self.model["decode_pc"]):
            list_ = takewhile(lambda x: x[1]["op"] != Op.END or x[1]["last"],
                              enumerate(self.program[pc:], pc))
            stream = [(at, i) for at, i in list_ if i["src"] == Src.STREAM]
            done, total = 0, sum(stream_chunks(i) for _, i in stream)
            self.tiles.rewind(self.model["stream_addr"])
            for at, i in stream:
                with blamed(at):
                    self.tiles.stream(i)
                done += stream_chunks(i)
                if progress:
                    progress(done, total)
        self.clear()

    # ---- Instructions: Issue, TilingEngine and VectorUnit

    def _embed(self, i: Instruction) -> None:
        need(i["src"] in (Src.TOKEN, Src.TABLE), "an EMBED of no table")
        need(i["sink"] == Sink.ACT or i["row_beats"] * self.config.W == self.model["hidden"],
             "an embedding of another width")
        which = self._tokens if i["src"] == Src.TOKEN else self._pass.positions
        for slot, row in enumerate(self.tiles.table(i, which)):
            if i["sink"] == Sink.RESIDUAL and not i["add"]:
                self._residual[slot] = 0
            self._to_sink(i, np.array([slot]), requant(row.values, row.mant, row.shift, row.bias))

    def _angles(self, i: Instruction) -> None:
        need(i["src"] == Src.TABLE and i["row_beats"] * self.config.W == self.head,
             "angles of another head")
        for slot, row in enumerate(self.tiles.table(i, self._pass.positions)):
            self._rope[slot] = row.values.reshape(-1, 2)

    def _norm(self, i: Instruction) -> None:
        gamma, slots = self.tiles.stream(i).values, self._of_pass(i)
        values = self._beside if i["beside"] else self._residual
        need(len(gamma) == 1 and gamma.size <= values.shape[1], "gammas of another width")
        self._write(i, slots, i["y"], rmsnorm(values[slots, :gamma.shape[1]], self._sums[slots],
                                              self.model["eps"], gamma[0], i["shift"], WIDE))

    def _linear(self, i: Instruction) -> None:
        rows, slots = self.tiles.stream(i), self._of_pass(i)
        if i["sink"] == Sink.LOGIT:
            slots = slots[-len(self._logits):]
        W, n = self.config.W, len(rows.values)
        if i["diagonal"]:
            need(i["tiles"] == 1 or i["rows"] % W == 0, "a diagonal's tile that ends within a word")
            acc = diagonal(rows.values, self._read(slots, i["x"], -(-n // W) * W))
        else:
            acc = dot(rows.values, self._read(slots, i["x"], rows.values.shape[1]))
        self._to_sink(i, slots, self._paired(i, slots, requant(acc, rows.mant, rows.shift,
                                                               rows.bias)))

    def _paired(self, i: Instruction, slots: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Requantised rows y[slots, rows] with what ``pair`` and ``fn`` make of them."""
        need(i["pair"] == Pair.NONE or y.shape[1] % 2 == 0, "a pair with one row")
        if i["pair"] == Pair.ROPE:
            pairs = y.reshape(len(y), -1, 2)
            angles = np.arange(pairs.shape[1]) % (self.head // 2)
            cos, sin = np.moveaxis(self._rope[slots][:, angles], -1, 0)
            return np.stack(rope(pairs[..., 0], pairs[..., 1], cos, sin, i["shift"], WIDE),
                            axis=-1).reshape(y.shape)
        if i["pair"] == Pair.GLU:
            return glu(Fn(i["fn"]), y[:, 0::2], y[:, 1::2], i["shift"], WIDE)
        if cap := cap_of(i):
            return softcap(y, cap)
        return alone(Fn(i["fn"]), y, i["shift"], WIDE) if i["fn"] else y

    def _to_sink(self, i: Instruction, slots: np.ndarray, y: np.ndarray) -> None:
        """Values y[slots, rows] of LINEAR or EMBED, where they go."""
        if i["sink"] in (Sink.RESIDUAL, Sink.BESIDE):
            self._write_residual(i, slots, y)
        elif i["sink"] == Sink.LOGIT:
            need(y.shape[1] <= self._logits.shape[1], "rows beyond the vocabulary")
            self._logits[:, :y.shape[1]] = y
        elif i["sink"] == Sink.SCRATCH:
            self._write_scratch(slots, i["y"], y)
        elif not i["heads"]:
            self._write(i, slots, i["y"], y)
        else:
            lanes, each = self._heads(i), self._lanes(i)
            heads = lanes[::each]
            need(y.shape[1] == len(heads) * self.head, "not a head for each lane")
            for token, row in zip(slots, y):
                at, of_heads = i["y"] + int(token) * self.head, row.reshape(-1, self.head)
                self._write(i, heads, at, of_heads)
                self._act[self._words(lanes, at, self.head)] = np.repeat(
                    self._act[self._words(heads, at, self.head)], each, axis=0)

    def _heads(self, i: Instruction) -> np.ndarray:
        """Lanes that are heads, as slots: those of block 0."""
        need(0 < i["lanes"] <= self.config.P and self._pass.nb == 1,
             f"{i['lanes']} heads of {self._pass.n} tokens")
        return np.arange(i["lanes"])

    def _lanes(self, i: Instruction) -> int:
        """How many lanes each of those heads has: neighbours."""
        each = self.config.sv_cycles if i["add"] else 1
        need(not i["add"] or self.config.lane_pairs, "lanes in pairs on a core without")
        need(i["lanes"] % each == 0, "a head with fewer lanes than others")
        return each

    def _store(self, i: Instruction) -> None:
        self._stores.append((i, self._pass))

    def _complete_stores(self) -> None:
        for i, p in self._stores:
            count = i["row_beats"] * self.config.W
            at = np.array([(i["addr"] + place.base) * self.config.W + place.position * count
                           for place in p.places()])
            need(self._loaded <= at.min() and at.max() + count <= len(self.memory),
                 "a STORE outside of the cache")
            first = i["x"] * self.config.W
            need(first + count <= self._scratch.shape[1], "a STORE beyond a token's part")
            self.memory[at[:, None] + np.arange(count)] = (
                self._scratch[:p.n, first:first + count].astype(np.uint8))
            self._counts["bus_write_words"] += p.n * count // self.config.bus_bytes
        self._stores.clear()

    def _attend(self, pc: int) -> int:
        """QK and the SVs behind it, for one subgroup of heads and blocks after the other -> place
        of the last one."""
        qk, p = self.program[pc], self._pass
        with blamed(pc):
            self._complete_stores()
            need(p.sub_heads > 0, "more scores than their memory holds")
            need(bool(qk["heads"]) or not p.batch, "tokens of a batch attend on a lane each")
        end = last_sv(self.program, pc)
        for at in range(pc + 1, end + 1):
            with blamed(at):
                sv = self._fetched(at)
                need(sv["op"] in (Op.SV, Op.SPILL, Op.FILL) and all(
                    sv[name] == qk[name]
                    for name in ("group", "heads", "lanes", "last", "back", "ahead", "add")),
                    "a QK without its SV")
        for lots in subgroups(self.config, p, qk):
            with blamed(pc):
                slots = self._heads(qk) if qk["heads"] else np.arange(
                    lots.blocks.start * self.config.P, min(lots.blocks.stop * self.config.P, p.n))
                found = self._qk(qk, slots, lots)
                peak = self._peaks(qk, self.program[pc + 1:end + 1], found)
            for at in range(pc + 1, end + 1):
                with blamed(at):
                    i = self.program[at]
                    if i["op"] == Op.SV:
                        self._sv(i, slots, lots, found, peak)
                    elif i["op"] == Op.SPILL:
                        self._spill(i, slots, lots, probabilities(found, peak)[0] - (1 << 15)
                                    if i["beside"] else spilled(found))
                    else:
                        found = self._fill(i, slots, lots)
            self._counts["instructions"] += 1 + end - pc
        return end

    def _qk(self, i: Instruction, slots: np.ndarray, lots: Lots) -> np.ndarray:
        """Scores of query heads: int64[heads, slots, keys]."""
        p, W, width = self._pass, self.config.W, i["row_beats"] * self.config.W
        keys = self.tiles.cache(i, lots.keys, lots.base, width)
        x = np.stack([self._read(slots, i["x"] + h * self.head // W, width) for h in lots.heads])
        acc = dot(keys, x)
        # How far a key lies behind a token. Heads are of one token, and see all that is read.
        behind = np.array(lots.keys) - p.pos0 - slots[:, None]
        hidden = ((behind > 0) & (not i["ahead"]) | (behind < -i["back"])) & (not i["heads"])
        self._counts["score_saturations"] += int(np.count_nonzero(
            (saturated(acc, i["shift"]) & ~hidden)[:, ::self._lanes(i)]))
        return np.where(hidden, MASKED, scores(acc, i["shift"], cap_of(i)))

    def _lanes_of(self, i: Instruction, slots: np.ndarray, lots: Lots,
                  ) -> Iterator[tuple[int, np.ndarray, np.ndarray, int]]:
        """Each lot of a subgroup: its head, the places of its tokens in ``slots``, their lanes, and
        how many keys its block sees."""
        for head in range(len(lots.heads)):
            for block in lots.blocks:
                at = np.arange(len(slots)) if i["heads"] else np.flatnonzero(
                    slots // self.config.P == block)
                sees = lots.keys if i["heads"] else self._pass.sees(self.config, i, block)
                yield head, at, slots[at] % self.config.P, len(sees)

    def _spill(self, i: Instruction, slots: np.ndarray, lots: Lots, values: np.ndarray) -> None:
        """16 bits each of values[heads, slots, keys] to memory, those of a lot behind those of the
        one before."""
        P, per = self.config.P, self.config.spilled_keys
        need(lots.keys.start == 0 and len(lots.keys) <= i["rows"],
             "a SPILL of keys of several tiles, or in a window")
        parts = []
        for head, at, lanes, keys in self._lanes_of(i, slots, lots):
            part = np.zeros((keys, P), "<i2")
            part[:, lanes] = values[head, at, :keys].T
            parts.append(part)
        rows = np.concatenate(parts)
        raw = np.pad(rows, ((0, -len(rows) % per), (0, 0))).tobytes()
        at = i["addr"] * self.config.W
        need(self._loaded <= at and at + len(raw) <= len(self.memory), "a SPILL outside of memory")
        self.memory[at:at + len(raw)] = np.frombuffer(raw, np.uint8)
        self._counts["bus_write_words"] += len(raw) // self.config.bus_bytes

    def _fill(self, i: Instruction, slots: np.ndarray, lots: Lots) -> np.ndarray:
        """What SPILL wrote, in the place of scores: int64[heads, slots, keys]."""
        places = list(self._lanes_of(i, slots, lots))
        rows = self.tiles.spilled(i, sum(keys for *_, keys in places))
        found = np.full((len(lots.heads), len(slots), len(lots.keys)), MASKED)
        for head, at, lanes, keys in places:
            found[head, at, :keys] = rows[:keys, lanes].T.astype(np.int64) << 2
            rows = rows[keys:]
        return found

    def _sv(self, i: Instruction, slots: np.ndarray, lots: Lots, found: np.ndarray,
            peaks: np.ndarray) -> None:
        width = i["row_beats"] * self.config.W
        need(0 < width <= self.config.sv_values, f"an SV of {width} columns")
        values = self.tiles.cache(i, lots.keys, lots.base, width)
        for h, each, peak in zip(lots.heads, found, peaks, strict=True):
            p = spilled(each) + (1 << 15) if i["beside"] else probabilities(each, peak)[0]
            total = p.sum(axis=-1)
            mant, shift = output_scale(total, i["mant"], i["shift"])
            y = requant(broadcast(p, values), mant[:, None], shift[:, None])
            if i["heads"]:                  # to the token's lane, one behind the other
                each = self._lanes(i)       # lane k of a head has each k-th element
                y = np.stack([y[k::each, k::each] for k in range(each)], -1).reshape(-1, width)
                for head, row in enumerate(y):
                    self._write(i, np.array([h]), i["y"] + head * self.head, row[None])
            else:
                self._write(i, slots, i["y"] + h * self.head, y)
