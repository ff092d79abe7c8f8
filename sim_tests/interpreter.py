"""Executes program and packed memory as the chip would, in slow Python, from the golden blocks.

It knows instructions, tiles, lanes and memories (docs/architecture.md) and nothing of the model:
equal logits from it and from the golden model mean that layout and program are right.
"""
import numpy as np

from meadowlark_hdl.compute.norm_golden import add_residual, rmsnorm, sum_of_squares
from meadowlark_hdl.compute.requant_golden import requant
from meadowlark_hdl.compute.rope_golden import rope
from meadowlark_hdl.compute.softmax_golden import MASKED, output_scale, probabilities, scores
from meadowlark_hdl.compute.swiglu_golden import swiglu
from meadowlark_hdl.config import Config
from meadowlark_hdl.control.sequencer_golden import Pass, prompt_passes
from meadowlark_hdl.fixed import saturate
from meadowlark_hdl.isa import Epi, Header, Op, Src
from meadowlark_hdl.weights.decoder_golden import decode_tile, header_chunks, tile_chunks
from meadowlark_hdl.weights.packing_golden import Unpacker


class Interpreter:
    """A core with an image loaded.

    Memories start full of noise: what is read before it is written shows. Stores take as long as
    they may: their words are read when the next QK waits for them.

    Parameters
    ----------
    image : meadowlark.compile.image.Image
    config : Config
    seed : int, of the noise
    """

    def __init__(self, image, config: Config, seed: int = 0) -> None:
        self.image, self.c, self.r = image, config, image.model_regs
        self.program = image.instructions
        rng = np.random.default_rng(seed)
        W, P = config.W, config.P
        self.memory = rng.integers(0, 256, image.needs["memory_bytes"], np.uint8)
        self.memory[:len(image.memory)] = np.frombuffer(image.memory, np.uint8)
        self.act = rng.integers(-32768, 32768, (P, config.act_words * W))
        self.residual = rng.integers(-1 << 26, 1 << 26, config.residual_values)
        self.rope = rng.integers(-32768, 32768, (config.rope_pairs, 2))
        self.scores = {}
        self.stores = []            # (instruction, pass) still under way
        self.head = 1 << self.r["head_log2"]
        self.stream = 0
        self.executed = 0           # instructions

    # ---- runs

    def prompt(self, tokens, start_pos: int = 0) -> np.ndarray:
        """Tokens at start_pos.. -> int64[vocab] logits of the last one."""
        tokens = list(tokens)
        for p in prompt_passes(self.c, self.r["head_log2"], self.r["blocks"], start_pos,
                               len(tokens)):
            at = p.pos0 - start_pos
            logits = self.run(p, tokens[at:at + p.n])
        return logits

    def step(self, token: int, position: int) -> np.ndarray:
        """A decode pass."""
        return self.run(Pass(position, 1, 1, position + 1, True, True), [token])

    def run(self, p: Pass, tokens) -> np.ndarray | None:
        self.p, self.tokens = p, tokens
        self.stream, self.unpacker = self.r["stream_addr"], Unpacker(
            self.c.unpack_lanes, self.c.W)
        self.logits = np.full(self.r["vocab"], 1 << 40)
        pc = self.r["decode_pc" if p.decode else "prefill_pc"]
        while True:
            i = self.program[pc]
            pc += 1
            self.executed += 1
            if i["op"] == Op.END:
                if not i["last"]:
                    assert (self.logits < 1 << 40).all()
                    return self.logits
                if not p.final:
                    return None
                continue
            getattr(self, "_" + Op(i["op"]).name.lower())(i)

    # ---- tiles

    def _tile(self, i, addr, rows, chunks):
        """(mant, shift, bias, values[rows, row_beats * W]) of a tile that fits its buffer."""
        W = self.c.W
        beats = rows * i["row_beats"]
        assert 0 < beats <= self.c.tile_beats and chunks < 4096
        if i["header"] != Header.NONE:
            assert rows <= self.c.tile_rows
        assert chunks == tile_chunks(i["mode"], i["header"], rows, i["row_beats"], W)
        assert (addr + chunks) * W <= len(self.memory)
        raw = self.memory[addr * W:(addr + chunks) * W].tobytes()
        mant, shift, bias, values = decode_tile(raw, W=W, rows=rows, row_beats=i["row_beats"],
                                                mode=i["mode"], header=i["header"])
        return mant, shift, bias, values.reshape(rows, -1)

    def _packed_tiles(self, i):
        """Tiles lie one behind the other; the jobs cover them together."""
        W, mode, header, n = self.c.W, i["mode"], i["header"], i["tiles"]
        chunks = (n - 1) * i["chunks"] + i["last_chunks"]
        raw = self.memory[self.stream * W:(self.stream + chunks) * W].tobytes()
        self.stream += chunks
        at = 0
        for k in range(n):
            rows = i["last_rows"] if k == n - 1 else i["rows"]
            shape = dict(rows=rows, row_beats=i["row_beats"], mode=mode, header=header)
            head = header_chunks(header, rows, W)
            plain, end = self.unpacker.tile(raw, at + head * W, tile_chunks(**shape, W=W) - head)
            found = decode_tile(raw[at:at + head * W] + plain.tobytes(), W=W, **shape)
            at = end
            yield k * i["rows"], (*found[:3], found[3].reshape(rows, -1))
        assert at == len(raw)

    def _stream_tiles(self, i):
        assert i["src"] == Src.STREAM
        if i["packed"]:
            yield from self._packed_tiles(i)
            return
        for k in range(i["tiles"]):
            end = k == i["tiles"] - 1
            rows, chunks = (i["last_rows"], i["last_chunks"]) if end else (i["rows"], i["chunks"])
            yield k * i["rows"], self._tile(i, self.stream, rows, chunks)
            self.stream += chunks

    def _cache(self, i):
        """int[ctx, head] from memory, tile by tile."""
        assert not self.stores
        assert i["src"] == Src.KV and i["chunks"] == i["rows"] * i["row_beats"]
        out = []
        for first in range(0, self.p.ctx, i["rows"]):
            n = min(i["rows"], self.p.ctx - first)
            out.append(self._tile(i, i["addr"] + first * i["row_beats"], n,
                                  n * i["row_beats"])[3])
        return np.concatenate(out)

    # ---- addresses

    def _slots(self, n):
        """(block, lane) of each of the first n token slots."""
        return [divmod(s, self.c.P) for s in range(n)]

    def _element(self, block: int, element: int) -> int:
        """Index in a lane's activation memory; the element must lie in the memory."""
        at = block * self.r["block_words"] * self.c.W + element
        assert at < self.act.shape[1]
        return at

    # ---- instructions

    def _embed(self, i):
        hidden, W = self.r["hidden"], self.c.W
        assert i["src"] == Src.TOKEN and hidden == i["row_beats"] * W
        for s, token in enumerate(self.tokens):
            mant, shift, bias, v = self._tile(i, i["addr"] + token * i["chunks"], 1, i["chunks"])
            self.residual[s * hidden:(s + 1) * hidden] = add_residual(
                0, requant(v[0], mant, shift, bias))

    def _rope(self, i):
        assert i["src"] == Src.TABLE
        for s in range(self.p.n):
            row = self._tile(i, i["addr"] + (self.p.pos0 + s) * i["chunks"], 1, i["chunks"])[3]
            at = s * self.head // 2
            self.rope[at:at + self.head // 2] = row.reshape(-1, 2)

    def _norm(self, i):
        hidden = self.r["hidden"]
        (_, (_, _, _, gamma)), = self._stream_tiles(i)
        for s, (block, lane) in enumerate(self._slots(self.p.n)):
            if i["last"] and s != self.p.n - 1:
                continue
            r = self.residual[s * hidden:(s + 1) * hidden]
            y = rmsnorm(r, sum_of_squares(r), self.r["eps"], gamma[0], i["shift"])
            at = self._element(block, i["y"])
            self.act[lane, at:at + hidden] = y

    def _linear(self, i):
        p, P, W = self.p, self.c.P, self.c.W
        blocks = [(p.n - 1) // P] if i["last"] else range(p.nb)
        lanes = [0] if i["heads"] else range(P)
        k = i["row_beats"] * W
        for row, (mant, shift, bias, codes) in self._stream_tiles(i):
            for block in blocks:
                at = self._element(block, i["x"] * W)
                for lane in lanes:
                    acc = codes @ self.act[lane, at:at + k]
                    self._results(i, row, block, lane, requant(acc, mant, shift, bias))

    def _results(self, i, row, block, lane, y):
        """Epilogue of the results of one tile in one lane."""
        epi, slot = i["epi"], block * self.c.P + lane
        rows = row + np.arange(len(y))
        if epi == Epi.RESID:
            at = slot * self.r["hidden"] + rows
            self.residual[at] = add_residual(self.residual[at], y)
            return
        if epi == Epi.LOGIT:
            if slot == self.p.n - 1:
                self.logits[rows] = y
            return
        if epi in (Epi.ROPE16, Epi.ROPE8):
            pairs = slot * self.head // 2 + rows[0::2] % self.head // 2
            cos, sin = self.rope[pairs].T
            bits = 16 if epi == Epi.ROPE16 else 8
            y = np.stack(rope(y[0::2], y[1::2], cos, sin, i["shift"], bits), -1).ravel()
        elif epi == Epi.SWIGLU:
            y, rows = swiglu(y[0::2], y[1::2], i["shift"]), rows[0::2] // 2
        else:
            y = saturate(y, 16 if epi == Epi.ACT16 else 8)
        if i["heads"]:
            lane, rows = rows // self.head, rows % self.head
            assert lane.max() < i["lanes"] <= self.c.P
        self._element(block, i["y"] + int(rows.max()))
        self.act[lane, self._element(block, i["y"]) + rows] = y

    def _store(self, i):
        self.stores.append((i, self.p))

    def _complete_stores(self):
        while self.stores:
            self._complete_store(*self.stores.pop(0))

    def _complete_store(self, i, p):
        W = self.c.W
        k = i["row_beats"] * W
        for s, (block, lane) in enumerate(self._slots(p.n)):
            at = self._element(block, i["x"] * W)
            to = (i["addr"] + (p.pos0 + s) * i["row_beats"]) * W
            assert to + k <= len(self.memory) and to >= len(self.image.memory)
            self.memory[to:to + k] = self.act[lane, at:at + k] & 255

    def _views(self, i):
        """(block, lane, keys seen by the block, keys seen by the lane) for QK and SV."""
        p, P = self.p, self.c.P
        for block in range(1 if i["heads"] else p.nb):
            limit = p.ctx if i["heads"] else min(p.ctx, p.pos0 + (block + 1) * P)
            for lane in range(P):
                seen = p.pos0 + (0 if i["heads"] else block * P + lane) + 1
                yield block, lane, limit, min(seen, limit)

    def _qk(self, i):
        self._complete_stores()
        keys = self._cache(i)
        assert self.p.nb * self.p.ctx <= self.c.score_depth
        for block, lane, limit, seen in self._views(i):
            at = self._element(block, i["x"] * self.c.W)
            s = scores(keys[:limit] @ self.act[lane, at:at + self.head], i["shift"])
            s[seen:] = MASKED
            self.scores[block, lane] = s

    def _sv(self, i):
        values = self._cache(i)
        for block, lane, limit, _ in self._views(i):
            if i["heads"] and lane >= i["lanes"]:
                continue
            p, total = probabilities(self.scores[block, lane])
            mant, shift = output_scale(total, i["mant"], i["shift"])
            y = saturate(requant(p @ values[:limit], mant, shift), 16)
            to, element = (0, i["y"] + lane * self.head) if i["heads"] else (lane, i["y"])
            at = self._element(block, element)
            self.act[to, at:at + self.head] = y
