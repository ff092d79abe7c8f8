"""Golden model of the weight decoder: chunks of memory -> row headers and beats."""
import numpy as np

from ..isa import Header, Mode
from .block_golden import block_weights
from .modes import BLOCK, MODES, ModeInfo


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
    return header_chunks(header, rows, W) + MODES[Mode(mode)].chunks(rows * row_beats)


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
    values = _decode(raw[at:], W, rows * row_beats, MODES[Mode(mode)])
    return mant, shift, bias, values.astype(np.int64).reshape(rows * row_beats, W)


def _decode(raw: bytes, W: int, beats: int, info: ModeInfo) -> np.ndarray:
    """Scales and codes of a tile -> its weights."""
    at = info.scale_chunks(beats) * W
    if info.offset is None:
        codes = np.frombuffer(raw, f"<i{info.bits // 8}", beats * W, at)
    else:
        pairs = np.frombuffer(raw, np.uint8, info.code_chunks(beats) * W, at).reshape(-1, 1, W)
        codes = np.concatenate([pairs & 15, pairs >> 4], axis=1).reshape(-1, W)[:beats]
        codes = codes.astype(np.int8) - np.int8(info.offset)
    if not info.group:
        return codes
    blocks = beats * W // BLOCK
    half = np.frombuffer(raw, "<f2", blocks * len(info.halves)).reshape(blocks, -1)
    return block_weights(codes.reshape(blocks, BLOCK),
                         **{name: half[:, k:k + 1] for k, name in enumerate(info.halves)})


def scale_bytes(info: ModeInfo, scale, minimum) -> np.ndarray:
    """float16[rows, blocks], of what a mode has -> uint8[rows, bytes of a row's scales]."""
    halves = {"scale": scale, "minimum": minimum}
    parts = np.stack([np.asarray(halves[name], "<f2") for name in info.halves], axis=-1)
    return parts.reshape(len(parts), -1).view(np.uint8)


def code_bytes(info: ModeInfo, codes: np.ndarray, W: int) -> np.ndarray:
    """int[..., values], whole beats -> uint8[..., bytes of whole chunks]."""
    if info.offset is None:
        return np.ascontiguousarray(codes, f"<i{info.bits // 8}").view(np.uint8)
    beats = (codes + info.offset).astype(np.uint8).reshape(*codes.shape[:-1], -1, W)
    if beats.shape[-2] % 2:
        beats = np.concatenate([beats, np.zeros_like(beats[..., :1, :])], axis=-2)
    pairs = beats[..., 0::2, :] | beats[..., 1::2, :] << 4
    return pairs.reshape(*codes.shape[:-1], -1)


def encode_tile(codes, mant=None, shift=None, bias=None, *, W: int, mode: int,
                header: int = Header.NONE, scale=None, minimum=None) -> bytes:
    """Inverse: codes int[rows, K] and what the header holds, see :func:`row_headers` -> bytes.

    INT8, INT16: K is padded to W with zeros. Block modes: K is a multiple of 32; scale, and in
    Q4_1 minimum: float16[rows, K / 32].
    """
    codes = np.asarray(codes)
    info = MODES[Mode(mode)]
    parts = []
    if header != Header.NONE:
        parts.append(row_headers(header, mant, shift, bias).tobytes())
    if info.group:
        parts.append(scale_bytes(info, scale, minimum).tobytes())
    codes = np.pad(codes, ((0, 0), (0, -codes.shape[1] % W)))
    parts.append(code_bytes(info, codes.reshape(-1), W).tobytes())
    return b"".join(part + bytes(-len(part) % W) for part in parts)
