"""Golden model of the weight decoder: chunks of memory -> row headers and beats."""
import numpy as np

from ..isa import Header, Mode
from .block_golden import BLOCK, SCALE_BYTES, block_weights


#: Bytes of a row header.
HEADER_BYTES = {Header.NONE: 0, Header.SCALE: 4, Header.BIAS: 8, Header.SHORT: 2}
#: Bits of a mantissa, the leading one among them, that a SHORT header keeps.
SHORT_BITS = 11


def header_chunks(header: int, rows: int, W: int) -> int:
    """Chunks of W bytes taken by the row headers of a tile."""
    return -(-rows * HEADER_BYTES[Header(header)] // W)


def row_headers(header: int, mant, shift, bias=None) -> np.ndarray:
    """uint8[rows, bytes of a header]; bias: of BIAS only.

    ValueError for a mantissa that SHORT cannot hold; 0 is taken, for rows without weights.
    """
    out = np.zeros((len(mant), HEADER_BYTES[Header(header)]), np.uint8)
    mant = np.asarray(mant, "<u2")
    if header == Header.SHORT:
        low = 16 - SHORT_BITS
        if ((mant & (1 << low) - 1 != 0) | (mant != 0) & (mant >> 15 == 0)).any():
            raise ValueError(f"a mantissa of more than {SHORT_BITS} bits")
        word = mant >> low & (1 << SHORT_BITS - 1) - 1 | np.asarray(shift, "<u2") << SHORT_BITS - 1
        out[:] = word.astype("<u2").reshape(-1, 1).view(np.uint8)
        return out
    out[:, :2] = mant.reshape(-1, 1).view(np.uint8)
    out[:, 2] = shift
    if header == Header.BIAS:
        out[:, 4:] = np.asarray(bias, "<i4").reshape(-1, 1).view(np.uint8)
    return out


def tile_chunks(mode: int, header: int, rows: int, row_beats: int, W: int) -> int:
    """Chunks of a tile, row headers included."""
    beats = rows * row_beats
    chunks = header_chunks(header, rows, W)
    if mode == Mode.INT16:
        return chunks + 2 * beats
    if mode == Mode.INT8:
        return chunks + beats
    blocks = beats * W // BLOCK
    codes = beats if mode == Mode.Q8_0 else -(-beats // 2)
    return chunks - (-blocks * SCALE_BYTES[Mode(mode)] // W) + codes


def decode_tile(raw: bytes, *, W: int, rows: int, row_beats: int, mode: int, header: int):
    """One tile of memory -> (mant[rows], shift[rows], bias[rows], values[rows*row_beats, W]).

    Values are signed 18-bit weights. Without header mant, shift, bias are 1, 0, 0.
    """
    at = header_chunks(header, rows, W) * W
    mant, shift, bias = np.ones(rows, int), np.zeros(rows, int), np.zeros(rows, int)
    step = HEADER_BYTES[Header(header)]
    if header == Header.SHORT:
        word = np.frombuffer(raw, "<u2", rows).astype(int)
        mant = 1 << 15 | (word & (1 << SHORT_BITS - 1) - 1) << 16 - SHORT_BITS
        shift = word >> SHORT_BITS - 1
    elif header != Header.NONE:
        h = np.frombuffer(raw[: step * rows], np.uint8).reshape(rows, step)
        mant = h[:, 0] + 256 * h[:, 1].astype(int)
        shift = h[:, 2].astype(int) & 63
        if header == Header.BIAS:
            bias = np.ascontiguousarray(h[:, 4:8]).view("<i4")[:, 0].astype(int)
    if mode in SCALE_BYTES:
        return mant, shift, bias, _decode_blocks(raw[at:], W, rows * row_beats, Mode(mode))
    dtype = np.int8 if mode == Mode.INT8 else np.dtype("<i2")
    n = rows * row_beats * W
    values = np.frombuffer(raw, dtype, n, at).astype(np.int64).reshape(rows * row_beats, W)
    return mant, shift, bias, values


def _decode_blocks(raw: bytes, W: int, beats: int, mode: Mode) -> np.ndarray:
    """Scales and codes of a tile -> int[beats, W]."""
    blocks = beats * W // BLOCK
    at = -(-blocks * SCALE_BYTES[mode] // W) * W
    half = np.frombuffer(raw, "<f2", blocks * SCALE_BYTES[mode] // 2).reshape(blocks, -1)
    if mode == Mode.Q8_0:
        codes = np.frombuffer(raw, np.int8, beats * W, at)
    else:
        pairs = np.frombuffer(raw, np.uint8, -(-beats // 2) * W, at).reshape(-1, 1, W)
        codes = np.concatenate([pairs & 15, pairs >> 4], axis=1).reshape(-1, W)[:beats]
        codes = codes.astype(np.int8) - (8 if mode == Mode.Q4_0 else 0)
    values = block_weights(codes.reshape(blocks, BLOCK), half[:, :1],
                           half[:, 1:] if mode == Mode.Q4_1 else None)
    return values.astype(np.int64).reshape(beats, W)


def _encode_blocks(codes: np.ndarray, scale, minimum, W: int, mode: Mode) -> bytes:
    parts = [np.asarray(scale, "<f2")] + ([np.asarray(minimum, "<f2")]
                                          if mode == Mode.Q4_1 else [])
    scales = np.stack(parts, axis=-1).tobytes()
    scales += bytes(-len(scales) % W)
    if mode == Mode.Q8_0:
        return scales + codes.astype(np.int8).tobytes()
    nibbles = (codes + (8 if mode == Mode.Q4_0 else 0)).astype(np.uint8).reshape(-1, W)
    if len(nibbles) % 2:
        nibbles = np.concatenate([nibbles, np.zeros_like(nibbles[:1])])
    return scales + (nibbles[0::2] | nibbles[1::2] << 4).tobytes()


def encode_tile(codes, mant=None, shift=None, bias=None, *, W: int, mode: int,
                header: int = Header.NONE, scale=None, minimum=None) -> bytes:
    """Inverse: codes int[rows, K] and what the header holds, see :func:`row_headers` -> bytes.

    INT8, INT16: K is padded to W with zeros. Block modes: K is a multiple of 32; scale, and in
    Q4_1 minimum: float16[rows, K / 32].
    """
    codes = np.asarray(codes)
    rows, k = codes.shape
    if mode in SCALE_BYTES:
        body = np.frombuffer(_encode_blocks(codes, scale, minimum, W, Mode(mode)), np.uint8)
    else:
        body = np.zeros((rows, -(-k // W) * W), np.int8 if mode == Mode.INT8 else "<i2")
        body[:, :k] = codes
    head = b""
    if header != Header.NONE:
        head = row_headers(header, mant, shift, bias).tobytes()
        head += bytes(-len(head) % W)
    return head + body.tobytes()
