"""Frames of the host link in bytes: see :mod:`meadowlark_hdl.link.protocol`."""
from __future__ import annotations

from typing import NamedTuple
from zlib import crc32

from meadowlark_hdl.link.protocol import CRC_BYTES, HEADER_BYTES, MAX_PAYLOAD, SYNC


class Frame(NamedTuple):
    """A frame. type: 0..255. seq: 0..255. payload: at most MAX_PAYLOAD bytes."""
    type: int
    seq: int
    payload: bytes = b""

    def encode(self) -> bytes:
        """Frame -> bytes, sync to CRC. ValueError if the payload is too long."""
        if len(self.payload) > MAX_PAYLOAD:
            raise ValueError(f"payload must have at most {MAX_PAYLOAD} bytes, "
                             f"not {len(self.payload)!r}")
        body = bytes((self.type, self.seq)) + len(self.payload).to_bytes(2, "little") + self.payload
        return bytes((SYNC,)) + body + crc32(body).to_bytes(CRC_BYTES, "little")


class FrameParser:
    """Bytes in any pieces -> frames. Damaged frames are skipped.

    After a damaged frame the search goes on right behind its first byte, so a false sync in a
    damaged stretch hides no good frame behind it.

    Attributes
    ----------
    bad : int
        Places that looked like a frame and were not.
    """

    def __init__(self) -> None:
        self._bytes = bytearray()
        self.bad = 0

    def feed(self, data: bytes) -> list[Frame]:
        """Frames completed by ``data``, in order."""
        self._bytes += data
        return self._parse()

    def resync(self) -> list[Frame]:
        """Give up the frame that is incomplete; frames found behind its first byte."""
        if not self._bytes:
            return []
        self.bad += 1
        del self._bytes[:1]
        return self._parse()

    def _parse(self) -> list[Frame]:
        raw, out, at = self._bytes, [], 0
        while (at := raw.find(SYNC, at)) >= 0:
            if len(raw) - at < HEADER_BYTES:
                break
            length = int.from_bytes(raw[at + 3:at + 5], "little")
            if length > MAX_PAYLOAD:
                self.bad += 1
                at += 1
                continue
            end = at + HEADER_BYTES + length
            if len(raw) < end + CRC_BYTES:
                break
            if crc32(raw[at + 1:end]) == int.from_bytes(raw[end:end + CRC_BYTES], "little"):
                out.append(Frame(raw[at + 1], raw[at + 2], bytes(raw[at + HEADER_BYTES:end])))
                at = end + CRC_BYTES
            else:
                self.bad += 1
                at += 1
        del raw[:at if at >= 0 else len(raw)]
        return out
