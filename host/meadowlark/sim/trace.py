"""What a simulated board records of its units: mirrors tracer.hpp."""
from __future__ import annotations

from enum import IntEnum

import numpy as np

#: A stretch of cycles begin..end-1 in which a track was in a state. count: cycles of it that really
#: were, for short gaps do not end a stretch; or items, words, as :data:`STATES` says. args: see
#: :class:`Track`.
RECORD = np.dtype([("begin", "u8"), ("end", "u8"), ("count", "u8"), ("track", "u4"),
                   ("state", "u4"), ("args", "u4", (4,))])


#: In the last arg of a pass and of an instruction: it has come to its end, not been given up.
DONE = 1 << 31


class Track(IntEnum):
    SEQUENCER = 0   #: of a pass: pc of its list, pos0, n, ctx | final << 16 | done << 31
    TOKEN = 1       #: an instant: the token; its state is 1 + reason
    FETCH = 2       #: an instant, a tile is asked for: its number in the pass, address, chunks
    READER = 3      #: a tile comes: its number; counts words
    MEMORY = 4      #: the memory's bus; counts words, and times of one
    DECODER = 5     #: counts items
    HALF0 = 6       #: of the tile buffer: the tile's number
    HALF1 = 7
    ISSUE = 8       #: an instruction: its number in the pass, from 1, its pc, -, done << 31
    WAIT = 9        #: for what Issue waits: -, cycles of it in which memory had not delivered
    ARRAY = 10      #: beats
    VECTOR = 11
    STORE = 12      #: counts words
    SAMPLER = 13    #: counts logits
    WINDOW = 14     #: words read and written; counts words in the run-ahead FIFO at its end


#: Names of a track's states, from 1.
STATES: dict[Track, tuple[str, ...]] = {
    Track.SEQUENCER: ("plan", "pass", "sample", "link"),
    Track.MEMORY: ("read", "write", "refresh", "row", "turnaround", "core"),
    Track.DECODER: ("items", "no data", "no free half"),
    Track.HALF0: ("filling", "full", "in use"), Track.HALF1: ("filling", "full", "in use"),
    Track.WAIT: ("tile", "store", "vector"),
    Track.VECTOR: ("results", "norm"),
    Track.SAMPLER: ("logits", "draw"),
}
