"""A board without a core: speaks the link, keeps what is written, invents tokens.

For tests of the driver and of all that stands on it; it can lose, damage and repeat frames.
"""
from __future__ import annotations

import random
import struct
from collections.abc import Callable, Sequence
from zlib import crc32

from meadowlark_hdl.config import Config
from meadowlark_hdl.link.counters_table import COUNTERS
from meadowlark_hdl.isa import INSTRUCTION_BYTES
from meadowlark_hdl.link.protocol import (ANSWER, BY_NAME, COMMANDS, CONFIG_REGS, CONTROL_BASE,
                                          COUNTERS_CRC, COUNTER_BASE, CREDITS, EVENT_FORMAT,
                                          EVENT_RING, ISA_CRC, LIVE_BASE, MAGIC, MAX_PAYLOAD,
                                          NAME_BYTES, REGISTER_WORDS, RESET_MAGIC, RUN_BASE,
                                          STATUS_BUSY, STATUS_READY, TOKEN, VERSION, Command,
                                          Reason, Result, config_facts)
from meadowlark_hdl.run_table import RUN_REGS, STOP_IDS

from .frames import Frame, FrameParser

#: tokens so far, from position 0 -> (next token, CRC of its logits)
NextToken = Callable[[Sequence[int]], tuple[int, int]]


def invented(history: Sequence[int]) -> tuple[int, int]:
    """A token and a CRC that depend on everything before: an error anywhere shows."""
    crc = crc32(struct.pack(f"<{len(history)}I", *history))
    return crc % 30_000, crc ^ 0x5A5A5A5A


class FakeBoard:
    """Transport and board in one.

    Its time moves only in ``read``: a call that finds nothing to deliver lets ``timeout`` pass, and
    a byte takes a microsecond.

    Parameters
    ----------
    config : Config, optional
        A small one unless given.
    next_token : callable
        The model: tokens from position 0 -> next token and CRC.
    memory_bytes : int
        Size of the memory.
    loss : float, 0..1
        Probability of each of the faults loss, damage, a lost byte and repetition, for each
        frame and direction.
    seed : int
        Of the faults.
    name : str
        What the board calls itself.

    Attributes
    ----------
    memory : bytearray
    program : dict of int to bytes          Instruction by address.
    tokens : dict of int to int             Token memory by position.
    caches : dict of int to dict            By base: the token whose keys stand at a position.
    seeds : dict of int to int              Of slots of a batch.
    words : list of int                     Register file.
    runs : list of int                      Numbers of the runs executed.
    commands : list of Command              Everything executed, in order.
    fail_with : int                         Error code that the next run ends with; 0 none.
    busy, ready : bool
    """

    def __init__(self, config: Config | None = None, *, next_token: NextToken = invented,
                 memory_bytes: int = 1 << 16, loss: float = 0.0, seed: int = 0,
                 name: str = "fake") -> None:
        self.config = config or Config(W=8, P=4, bus_bytes=2)
        self.next_token = next_token
        self.loss = loss
        self.timeout = 0.01
        self.resend_seconds = 0.02
        self.memory = bytearray(memory_bytes)
        self.program: dict[int, bytes] = {}
        self.tokens: dict[int, int] = {}
        self.caches: dict[int, dict[int, int]] = {}
        self.seeds: dict[int, int] = {}
        self._places: dict[int, tuple[int, int]] = {}       # of a slot: base, position
        self.runs: list[int] = []
        self.commands: list[Command] = []
        self.busy, self.ready, self.fail_with = False, True, 0
        self.counters = [0] * len(COUNTERS)
        self.closed = False
        self._time = 0.0
        self._random = random.Random(seed)
        self._parser = FrameParser()
        self._inbox: list[Frame] = []
        self._out = bytearray()
        self._ring: list[bytes] = []        # payloads of unacknowledged events
        self._first = self._sent = 0        # index of the ring's first event, of the next to send
        self._last_run = self._silence = self._position = self._left = 0
        self._aborted = False
        facts = config_facts(self.config) | {
            "magic": MAGIC, "version": VERSION, "isa": ISA_CRC, "counters": COUNTERS_CRC,
            "clock_khz": 100_000, "memory_kib": memory_bytes >> 10,
            "only": self.config.only_crc}
        raw = name.encode().ljust(NAME_BYTES, b"\0")
        facts |= {f"name_{i}": int.from_bytes(raw[4 * i:4 * i + 4], "little")
                  for i in range(NAME_BYTES // 4)}
        assert set(facts) >= {f.name for f in CONFIG_REGS}
        self.words = [0] * REGISTER_WORDS
        for key, value in facts.items():
            self.words[BY_NAME[key].address] = value

    # --- transport --------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        if self.closed:
            raise OSError("the board is closed")
        for raw in self._faulty(bytes(data)):
            for frame in self._parser.feed(raw):
                if len(self._inbox) <= CREDITS:
                    self._inbox.append(frame)

    def read(self, max: int, timeout: float) -> bytes:
        if self.closed:
            raise OSError("the board is closed")
        if not self._out:
            self._work()
        if not self._out:
            self._silence += timeout
            if self._silence >= self.resend_seconds and self._ring:
                self._silence, self._sent = 0.0, self._first
                self._work()
        if not self._out:
            # A real receiver is not brought back by time, only by bytes: nothing to do here.
            self._time += timeout
            return b""
        data = bytes(self._out[:max])
        self._time += 1e-6 * len(data)
        del self._out[:max]
        return data

    def now(self) -> float:
        return self._time

    def close(self) -> None:
        self.closed = True

    def _faulty(self, raw: bytes) -> list[bytes]:
        chance = self._random.random
        out = [raw]
        if chance() < self.loss:
            return []
        if chance() < self.loss:
            at = self._random.randrange(len(raw))
            out = [raw[:at] + bytes((raw[at] ^ 1 << self._random.randrange(8),)) + raw[at + 1:]]
        if chance() < self.loss:
            at = self._random.randrange(len(raw))
            out = [raw[:at] + raw[at + 1:]]
        if chance() < self.loss:
            out = out * 2
        return out

    def _send(self, frame: Frame) -> None:
        for raw in self._faulty(frame.encode()):
            self._out += raw

    # --- board ------------------------------------------------------------------------------------

    def _work(self) -> None:
        while self._inbox:
            frame = self._inbox.pop(0)
            try:
                answer = self._execute(frame)
            except ValueError:
                answer = bytes((Result.BAD_COMMAND,))
            if answer is not None:
                self._send(Frame(frame.type | ANSWER, frame.seq, answer))
        if self.busy and len(self._ring) < EVENT_RING:
            self._step()
        while self._sent < self._first + len(self._ring):
            self._send(Frame(TOKEN, self._sent % 256, self._ring[self._sent - self._first]))
            self._sent += 1
            self._silence = 0.0

    def _run_register(self, name: str) -> int:
        return self.words[BY_NAME[name].address]

    def _event(self, token: int, crc: int, reason: Reason) -> None:
        index = self._first + len(self._ring)
        self._ring.append(struct.pack(EVENT_FORMAT, self._last_run, index, token, crc, reason))
        if reason != Reason.RUNNING:
            self.busy = False

    def _step(self) -> None:
        """The next event of the run."""
        self.counters[0] += 1000
        if self.fail_with:
            self.words[BY_NAME["error"].address] = self.fail_with
            self.words[BY_NAME["error_pc"].address] = 7
            self.fail_with = 0
            self._event(0, 0, Reason.ABORTED)
        elif self._aborted:
            self._event(0, 0, Reason.ABORTED)
        elif self._run_register("max_new") == 0:
            self._event(0, 0, Reason.FILLED)
        else:
            self._draw()

    def _draw(self) -> None:
        """A token of the run, or of each of its sequences."""
        batch, at = self._run_register("batch"), self._position
        stops = {self._run_register(f"stop_id_{i}")
                 for i in range(min(self._run_register("stop_count"), STOP_IDS))}
        self._left -= 1
        n = self._run_register("prompt") if batch else 1
        drawn = []
        for slot in range(n):
            base, position = self._places.get(slot, (0, 0))
            position = position + at + 1 if batch else at
            cache = self.caches.setdefault(base, {})
            cache[position - 1] = self.tokens.get(at + slot if batch else at - 1, 0)
            drawn.append(self.next_token([cache.get(i, 0) for i in range(position)]))
        last = at + n - (not batch)         # where the last token belongs
        full = last >= self.config.context
        reason = (Reason.STOP if stops & {token for token, _ in drawn} else
                  Reason.MAX_NEW if self._left == 0 else
                  Reason.CONTEXT if full else Reason.RUNNING)
        for k, (token, crc) in enumerate(drawn):
            if last - n + 1 + k < self.config.context:
                self.tokens[last - n + 1 + k] = token
            self._event(token, crc, reason if k == n - 1 else Reason.RUNNING)
        self._position += 1

    def _execute(self, frame: Frame) -> bytes | None:
        command = Command(frame.type)
        self.commands.append(command)
        ok = bytes((Result.OK,))
        raw = frame.payload
        if len(raw) < 4 * len(COMMANDS[command].arguments):
            return None if COMMANDS[command].answer is None else bytes((Result.BAD_LENGTH,))
        first = int.from_bytes(raw[:4], "little")
        second = int.from_bytes(raw[4:8], "little")
        bus = self.config.bus_bytes
        if command == Command.READ:
            if not 1 <= second <= (MAX_PAYLOAD - 1) // 4:
                return bytes((Result.BAD_LENGTH,))
            return ok + b"".join(self._word(first + i).to_bytes(4, "little")
                                 for i in range(second))
        if command == Command.WRITE:
            if not CONTROL_BASE <= first < REGISTER_WORDS:
                return bytes((Result.BAD_ADDRESS,))
            if self.busy and first >= RUN_BASE:
                return bytes((Result.BUSY,))
            for i, (word,) in enumerate(struct.iter_unpack("<I", raw[4:])):
                self.words[first + i] = word
                if first + i == BY_NAME["place"].address + 1:
                    self._places[word >> 16 & 31] = self.words[first + i - 1], word & 0x1FFF
                if first + i == BY_NAME["lane_seed"].address + 1:
                    self.seeds[word >> 16 & 31] = self.words[first + i - 1]
                if first + i == BY_NAME["reset"].address and word == RESET_MAGIC:
                    self.busy = False
            return ok
        if command in (Command.READ_MEMORY, Command.WRITE_MEMORY, Command.CRC_MEMORY):
            length = len(raw) - 4 if command == Command.WRITE_MEMORY else second
            if first % bus or length % bus or not length:
                return bytes((Result.BAD_LENGTH,))
            if not self.ready:
                return bytes((Result.NOT_READY,))
            if command == Command.WRITE_MEMORY:
                self.memory[first:first + length] = raw[4:]
                return ok
            data = bytes(self.memory[first:first + length])
            return ok + (data if command == Command.READ_MEMORY
                         else crc32(data).to_bytes(4, "little"))
        if command in (Command.WRITE_PROGRAM, Command.WRITE_TOKENS):
            if self.busy:
                return bytes((Result.BUSY,))
            size = INSTRUCTION_BYTES if command == Command.WRITE_PROGRAM else 4
            for i in range((len(raw) - 4) // size):
                unit = raw[4 + i * size:4 + (i + 1) * size]
                if command == Command.WRITE_PROGRAM:
                    self.program[first + i] = unit
                else:
                    self.tokens[first + i] = int.from_bytes(unit, "little")
            return ok
        run, index = first & 0xFFFF, first >> 16
        if command == Command.START:
            if run == self._last_run:
                return ok
            if self.busy:
                return bytes((Result.BUSY,))
            self._last_run, self.busy, self._aborted = run, True, False
            self.runs.append(run)
            self.words[BY_NAME["error"].address] = 0
            self._ring, self._first, self._sent = [], 0, 0
            start, end = self._run_register("start_pos"), self._run_register("prompt")
            self._position = 0
            if not self._run_register("batch"):
                self._position = start + end
                self.caches.setdefault(self._places.get(0, (0, 0))[0], {}).update(
                    (i, self.tokens.get(i, 0)) for i in range(start, start + end))
            self._left = self._run_register("max_new")
            return ok
        if command == Command.ABORT:
            self._aborted |= self.busy and run == self._last_run
            return ok
        if run == self._last_run and self._first < index <= self._first + len(self._ring):
            del self._ring[:index - self._first]
            self._first = index
            self._sent = max(self._sent, index)
            self._silence = 0.0
        return None

    def _word(self, address: int) -> int:
        if address >= COUNTER_BASE:
            index, high = divmod(address - COUNTER_BASE, 2)
            value = self.counters[index] if index < len(self.counters) else 0
            return value >> 32 * high & 0xFFFFFFFF
        if LIVE_BASE <= address < CONTROL_BASE:
            live = {"status": self.busy * STATUS_BUSY | self.ready * STATUS_READY,
                    "run": self._last_run, "events": self._first + len(self._ring)}
            for name, value in live.items():
                if BY_NAME[name].address == address:
                    return value
        return self.words[address] if address < REGISTER_WORDS else 0


assert len(RUN_REGS) == 12 + STOP_IDS
