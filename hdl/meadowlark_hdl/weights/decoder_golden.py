"""Golden model of the weight decoder: chunks of memory -> row headers and beats."""
import numpy as np

from ..isa import Header, Mode


def header_chunks(header: int, rows: int, W: int) -> int:
    """Chunks of W bytes taken by the row headers of a tile."""
    size = {Header.NONE: 0, Header.SCALE: 4, Header.BIAS: 8}[Header(header)] * rows
    return -(-size // W)


def decode_tile(raw: bytes, *, W: int, rows: int, row_beats: int, mode: int, header: int):
    """One tile of memory -> (mant[rows], shift[rows], bias[rows], values[rows*row_beats, W]).

    Values are signed 18-bit weights. Without header mant, shift, bias are 1, 0, 0.
    """
    at = header_chunks(header, rows, W) * W
    mant, shift, bias = np.ones(rows, int), np.zeros(rows, int), np.zeros(rows, int)
    if header != Header.NONE:
        step = 4 if header == Header.SCALE else 8
        h = np.frombuffer(raw[: step * rows], np.uint8).reshape(rows, step)
        mant = h[:, 0] + 256 * h[:, 1].astype(int)
        shift = h[:, 2].astype(int) & 63
        if header == Header.BIAS:
            bias = np.ascontiguousarray(h[:, 4:8]).view("<i4")[:, 0].astype(int)
    dtype = np.int8 if mode == Mode.INT8 else np.dtype("<i2")
    n = rows * row_beats * W
    values = np.frombuffer(raw, dtype, n, at).astype(np.int64).reshape(rows * row_beats, W)
    return mant, shift, bias, values


def encode_tile(codes, mant=None, shift=None, bias=None, *, W: int, mode: int) -> bytes:
    """Inverse: codes int[rows, K] (K padded to W with zeros) and row scales -> bytes."""
    codes = np.asarray(codes)
    rows, k = codes.shape
    body = np.zeros((rows, -(-k // W) * W), np.int8 if mode == Mode.INT8 else "<i2")
    body[:, :k] = codes
    head = b""
    if mant is not None:
        h = np.zeros((rows, 4 if bias is None else 8), np.uint8)
        h[:, :2] = np.asarray(mant, "<u2").reshape(-1, 1).view(np.uint8)
        h[:, 2] = shift
        if bias is not None:
            h[:, 4:] = np.asarray(bias, "<i4").reshape(-1, 1).view(np.uint8)
        head = h.tobytes()
        head += bytes(-len(head) % W)
    return head + body.tobytes()
