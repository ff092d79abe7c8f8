"""The weight stream: the matrices of a model as tiles, packed where that is smaller."""
from __future__ import annotations

import numpy as np

from meadowlark_hdl.config import Config
from meadowlark_hdl.isa import Header, Mode, Src
from meadowlark_hdl.weights.decoder_golden import encode_tile, header_chunks

from ..quant.quantise import QuantLinear
from .layout import Tiling, packed_jobs, spare_chunks, tile_linear
from .packing import Packer, Segment

#: Fields of a QuantLinear with an entry a row.
ROWS = ("codes", "mant", "shift", "bias", "scale", "minimum")


class Stream:
    """The weight stream under construction: appends tiles, returns instruction fields."""

    def __init__(self, config: Config, packing: str, most: int) -> None:
        """most: segments of a matrix in an instruction."""
        self.config, self.most = config, most
        self.parts: list[bytes] = []
        self.tensors: list[dict] = []       # see Image.tensors
        self.packer = Packer(packing, config.packing, config.unpack_lanes)

    def norm(self, gamma: np.ndarray) -> dict:
        """A tile of gammas, zeros where hidden is padded."""
        raw = encode_tile(np.asarray(gamma).reshape(1, -1), W=self.config.W, mode=Mode.INT16)
        self.parts.append(raw)
        chunks = len(raw) // self.config.W
        return dict(src=Src.STREAM, mode=Mode.INT16, header=Header.NONE, tiles=1, rows=1,
                    last_rows=1, row_beats=chunks // 2, chunks=chunks, last_chunks=chunks)

    def linear(self, q: QuantLinear, name: str, *, divides: int | None = None, even: bool = True,
               diagonal: bool = False) -> tuple[Tiling, dict, list[int]]:
        """The tiles of a linear layer: their shape, fields, and chunks of each.

        divides: rows that are packed together; an instruction has whole ones. even: add a row of
        zeros to an odd number of rows. diagonal: codes[rows, 1] are what is on a diagonal.
        """
        W = self.config.W
        rows, columns = len(q.codes), W if diagonal else q.codes.shape[1]
        t = tile_linear(rows + (rows % 2 if even else 0), -(-columns // W), self.config,
                        header=q.header, mode=q.mode, divides=divides, whole=W if diagonal else 2)
        heads = [header_chunks(q.header, n, W) for n in (*[t.rows] * (t.tiles - 1), t.last_rows)]
        tiles, packed = self._tiles(q, name, t, heads, divides // t.rows if divides else t.tiles,
                                    diagonal)
        self.parts += tiles
        return t, dict(src=Src.STREAM, mode=q.mode, header=q.header, diagonal=int(diagonal),
                       packed=int(packed), **t._asdict()), [len(tile) // W for tile in tiles]

    def _tiles(self, q: QuantLinear, name: str, t: Tiling, heads: list[int], each: int,
               diagonal: bool) -> tuple[list[bytes], bool]:
        """Tiles of a matrix as they lie in memory, and whether they are packed.

        heads: chunks of row headers of each. each: tiles of a segment. The rest as :meth:`linear`.
        """
        W = self.config.W
        parts = {name: getattr(q, name) for name in ROWS if getattr(q, name) is not None}
        if diagonal:
            parts["codes"] = parts["codes"] * np.eye(W, dtype=np.int8)[np.arange(len(q.codes)) % W]
        if len(q.codes) < (t.tiles - 1) * t.rows + t.last_rows:
            parts = {name: np.concatenate([part, np.zeros_like(part[:1])])
                     for name, part in parts.items()}
        tiles = []
        for at in range(0, len(parts["codes"]), t.rows):
            tile = {key: part[at:at + t.rows] for key, part in parts.items()}
            tiles.append(encode_tile(**tile, W=W, mode=q.mode, header=q.header))
        plain = [np.frombuffer(tile, np.uint8, offset=head * W).reshape(-1, W)
                 for tile, head in zip(tiles, heads)]
        segments = [Segment(np.concatenate(plain[k:k + each]), [len(p) for p in plain[k:k + each]])
                    for k in range(0, len(tiles), each)]
        spare = 0

        def fits(parts: list[list[bytes]]) -> bool:
            nonlocal spare
            sizes = [[head + len(part) // W for head, part in zip(heads, some)] for some in parts]
            if len(parts) == 1:
                spare = spare_chunks(sizes[0])
            return self._fits(sizes)
        packed = self.packer.pack(segments, fits)
        if packed.parts is None and spare:
            # Its first tiles are the larger ones, so all jobs must be: chunks at the end fill them.
            packed = self.packer.pack([segments[0]._replace(spare=spare)], fits)
        self.tensors.append(dict(
            name=name, mode=packed.mode, how=packed.how,
            weights=int((parts if diagonal else vars(q))["codes"].size),
            at=sum(map(len, self.parts)), raw_bytes=sum(map(len, plain)) * W,
            bytes=packed.bytes, entropy=round(packed.entropy, 4)))
        if packed.parts is None:
            return tiles, False
        coded = [part for parts in packed.parts for part in parts]
        return [tile[:head * W] + part for tile, head, part in zip(tiles, heads, coded)], True

    def _fits(self, segments: list[list[int]]) -> bool:
        """Whatever segments an instruction has, there are jobs for their tiles."""
        return all(packed_jobs(sum(segments[a:b], [])) for b in range(1, len(segments) + 1)
                   for a in range(max(0, b - self.most), b))
