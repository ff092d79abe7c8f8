"""Drives a board over the host link: see docs/link.md."""
from __future__ import annotations

import secrets
import struct
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from zlib import crc32

from meadowlark_hdl.config import Config
from meadowlark_hdl.draft.choice_golden import MOST_PRICE
from meadowlark_hdl.link.counters_table import COUNTERS
from meadowlark_hdl.control.errors import sentence
from meadowlark_hdl.control.sequencer_golden import Place, context_limit
from meadowlark_hdl.sampler.sampler_golden import Sampling, lane_seed
from meadowlark_hdl.isa import INSTRUCTION_BYTES, MODEL_REGS, Instruction, encode
from meadowlark_hdl.link.protocol import (ANSWER, BY_NAME, COUNTERS_CRC, COUNTER_BASE, CREDITS,
                                          EVENT_BYTES, EVENT_FORMAT, EVENT_RING, FLUSH_BYTES,
                                          ISA_CRC, LIVE_BASE, MAGIC, MAX_PAYLOAD, NAME_BYTES,
                                          REGISTERS, RESET_MAGIC, STATUS_BUSY, STATUS_READY, TOKEN,
                                          VERSION, Command, Reason, Register, Result, config_of)
from meadowlark_hdl.run_table import RUN_REGS, STOP_IDS

from ..errors import UserError
from .frames import Frame, FrameParser
from .transport import Transport

#: progress(bytes done, bytes in all)
Progress = Callable[[int, int], None]

#: Bytes that one CRC command covers; at 100 MHz a few milliseconds.
CRC_BLOCK = 1 << 18
#: How long a board has to say what it is, in seconds of the transport, whatever else arrives.
IDENTIFY = 4.0
#: Time without a token during a run, in seconds of the transport, after which the board is asked
#: how it is.
PATIENCE = 10.0


class BoardError(UserError):
    """The board does not answer, refuses, or failed; the message says what to do."""


@dataclass(frozen=True)
class BoardInfo:
    """What a board says about itself.

    name : str. config : Config. clock_hz : int, 0 unknown. memory_bytes : int, 0 unknown.
    only : int. CRC-32 of the one model's :class:`~meadowlark_hdl.only.Only` that the core is for,
    0: any.
    """
    name: str
    config: Config
    clock_hz: int
    memory_bytes: int
    only: int = 0


@dataclass(frozen=True)
class Status:
    """State of the board. error: 0 none (control/errors.py). error_pc: instruction at fault.
    run: number of the last run. events: token events of that run so far."""
    busy: bool
    ready: bool
    error: int
    error_pc: int
    run: int
    events: int


@dataclass(frozen=True)
class TokenEvent:
    """A generated token. index: 0.. in its run. token: id. crc: CRC-32 of the logits it was drawn
    from. reason: why the run ended with it, RUNNING if it did not."""
    index: int
    token: int
    crc: int
    reason: Reason


@dataclass
class _Sent:
    index: int          # of the command in its series
    frame: Frame
    stamp: int          # order of its latest sending


class Driver:
    """A connected board.

    Commands are repeated until answered; with :data:`CREDITS` of them under way at most, the board
    always has room. Times are the transport's.

    Parameters
    ----------
    transport : Transport
        Owned from here on.
    retries : int, 1..
        Repetitions in a row without any answer before the board is given up.

    Attributes
    ----------
    info : BoardInfo
    host_messages : int
        Frames sent between the last prompt frame of the latest run and its last token, credits
        apart: 0 unless something went wrong.
    reason : Reason
        Why the latest run ended; RUNNING before that.

    Raises
    ------
    BoardError
        Nothing answers, or something that is not a Meadowlark of this version.
    """

    def __init__(self, transport: Transport, *, retries: int = 8) -> None:
        if retries < 1:
            raise ValueError(f"retries must be at least 1, not {retries!r}")
        self.transport = transport
        self.retries = retries
        self.host_messages = 0
        self.reason = Reason.RUNNING
        self._parser = FrameParser()
        self._seq = secrets.randbelow(256)
        self._stamp = 0
        self._run = 0
        self._next = 0
        self._heard = 0             # events received, repetitions and those of other runs too
        self._events: deque[TokenEvent] = deque()
        self._counting = False
        self._asked = False         # the run under way is to end
        self._vocab: int | None = None      # of the model that was loaded here
        self._received = 0          # bytes
        self._until: float | None = None    # when the board is given up
        #: What an instruction of the loaded image reads, for error messages.
        self.places: Callable[[int], str] | None = None
        self.info = self._connect()

    def __enter__(self) -> Driver:
        return self

    def __exit__(self, *what) -> None:
        self.close()

    def close(self) -> None:
        """Close the transport."""
        self.transport.close()

    # --- frames -----------------------------------------------------------------------------------

    def _send(self, raw: bytes, *, credit: bool = False) -> None:
        if self._counting and not credit:
            self.host_messages += 1
        self.transport.write(raw)

    def _receive(self, timeout: float) -> list[Frame] | None:
        """Answers that came; token events are queued and acknowledged. None: silence."""
        raw = self.transport.read(4096, timeout)
        if not raw:
            return None
        self._received += len(raw)
        return self._sort(self._parser.feed(raw))

    def _sort(self, frames: list[Frame]) -> list[Frame]:
        answers, credit = [], False
        for frame in frames:
            if frame.type != TOKEN:
                answers.append(frame)
            elif len(frame.payload) == EVENT_BYTES:
                run, index, token, crc, reason = struct.unpack(EVENT_FORMAT, frame.payload)
                if reason not in list(Reason):
                    continue
                self._heard += 1
                if run != self._run:
                    # Of a run that nobody waits for any more, its acknowledgement lost: until
                    # one arrives the board sends it over and over. But a run that an earlier
                    # host left does not go on before _adopt() has ended it.
                    if self._run:
                        self._credit(run, index + 1 & 0xFFFF)
                    continue
                if index == self._next:
                    self._events.append(TokenEvent(index, token, crc, Reason(reason)))
                    self._next += 1
                # Also for what has come before: the acknowledgement was lost then. An index
                # too high means that an event was lost: the old acknowledgement tells.
                credit = True
        if credit:
            self._credit(self._run, self._next)
        return answers

    def _credit(self, run: int, index: int) -> None:
        self._send(Frame(Command.CREDIT, 0, struct.pack("<HH", run, index)).encode(), credit=True)

    def _series(self, commands: Iterable[tuple[Command, bytes]]) -> Iterator[bytes]:
        """Sends commands, several under way; their answers' data in order.

        The board executes in order of arrival and the way is in order, so an answer means that
        whatever was sent before and is still unanswered got lost: it is repeated at once. Without
        any answer for ``transport.timeout``, whatever else comes, everything unanswered is, after
        zeros enough to end whatever frame the board believes to be in. During a run the board
        sends at most :data:`EVENT_RING` events beyond an acknowledgement, so more than that many
        were sent after it had read an acknowledgement, and so the command before that one. Events
        that it repeats for want of an acknowledgement were sent after a wait and tell the same.
        """
        source = enumerate(commands)
        waiting: dict[int, _Sent] = {}
        ready: dict[int, tuple[Command, bytes]] = {}
        position = attempts = 0
        now, timeout = self.transport.now, self.transport.timeout
        last, heard = now(), self._heard        # of the latest answer, or repetition

        def put(sent: _Sent) -> None:
            sent.stamp = self._stamp = self._stamp + 1
            self._send(sent.frame.encode())

        while True:
            oldest = min((s.index for s in waiting.values()), default=None)
            room = CREDITS - len(waiting)
            if oldest is not None:      # sequence numbers must not come round
                room = min(room, oldest + 128 - max(s.index for s in waiting.values()))
            for index, (command, payload) in islice(source, max(room, 0)):
                self._seq = (self._seq + 1) % 256
                waiting[self._seq] = _Sent(index, Frame(command, self._seq, payload), 0)
                put(waiting[self._seq])
            if not waiting:
                return
            answers = self._receive(timeout) or []
            news = False
            for answer in answers:
                sent = waiting.get(answer.seq)
                if sent is None or not _answers(answer, sent.frame):
                    continue            # to something that was repeated and answered already
                del waiting[answer.seq]
                news = True
                ready[sent.index] = (Command(sent.frame.type), answer.payload)
                for lost in [s for s in waiting.values() if s.stamp < sent.stamp]:
                    put(lost)
            quiet = now() - last >= timeout
            if news:
                attempts, heard = 0, self._heard
            elif self._until is not None and now() >= self._until:
                raise self._gone()
            elif quiet or self._heard - heard > EVENT_RING:
                heard = self._heard
                if quiet:
                    attempts, last = attempts + 1, now()
                if attempts > self.retries:
                    raise self._gone()
                self._sort(self._parser.resync())
                self._send(bytes(FLUSH_BYTES), credit=True)
                for sent in waiting.values():
                    put(sent)
            while position in ready:
                command, payload = ready.pop(position)
                position += 1
                if payload[0] != Result.OK and self._until is not None:
                    raise BoardError("what answers is not a Meadowlark (it does not say what it "
                                     "is); check the port and load a Meadowlark bitstream")
                if payload[0] != Result.OK:
                    raise _refused(command, payload[0])
                yield payload[1:]
            if news:
                last = now()            # what the caller did meanwhile is no silence

    def _gone(self) -> BoardError:
        """No answer came."""
        check = "that it holds a Meadowlark bitstream and that the port's speed is the bitstream's"
        if self._until is not None and self._received:
            return BoardError(f"what is at the port is no Meadowlark, or at another speed: it sent "
                              f"{self._received:,} bytes and no answer; check the port, {check}")
        return BoardError(f"the board does not answer; check cable and power, {check}")

    def _command(self, command: Command, payload: bytes) -> bytes:
        for data in self._series([(command, payload)]):
            return data
        raise AssertionError("a series of one command has one answer")

    # --- registers --------------------------------------------------------------------------------

    def _connect(self) -> BoardInfo:
        # Anything may be at a port: whatever it sends, it does not hold us for long.
        begun = self.transport.now()
        self._until = begun + IDENTIFY
        # Whatever an earlier host left: half a frame there, answers and events here.
        self.transport.write(bytes(FLUSH_BYTES))
        while self.transport.read(4096, 0.0) and self.transport.now() < begun + IDENTIFY / 16:
            pass
        raw = self._command(Command.READ, struct.pack("<II", 0, 2))
        magic, version = struct.unpack("<II", raw)
        if magic != MAGIC:
            raise BoardError(f"what answers is not a Meadowlark (it says {magic:#010x}); check "
                             "the port and load a Meadowlark bitstream")
        if version != VERSION:
            raise BoardError(f"the board speaks version {version} of the link, this program "
                             f"{VERSION}; build the bitstream again with this version")
        values = self._words(0, LIVE_BASE)
        facts = {r.name: _value(r, values) for r in REGISTERS if r.access == "const"}
        for what, ours, has in (("isa", ISA_CRC, "another instruction set"),
                                ("counters", COUNTERS_CRC, "other counters")):
            if facts[what] != ours:
                raise BoardError(f"the board has {has} than this program; build the bitstream "
                                 "again with this version")
        self._until = None
        try:
            config = config_of(facts)
        except ValueError as error:
            raise BoardError(f"the board describes a core that cannot be ({error}); build the "
                             "bitstream again with this version") from error
        name = b"".join(facts[f"name_{i}"].to_bytes(4, "little") for i in range(NAME_BYTES // 4))
        self.info = BoardInfo(name.rstrip(b"\0").decode("ascii", "replace"), config,
                              facts["clock_khz"] * 1000, facts["memory_kib"] << 10,
                              facts["only"])
        self._adopt()
        return self.info

    def _adopt(self) -> None:
        """End a run that an earlier host left behind."""
        status = self.status()
        self._run = status.run
        self._next = status.events
        self._events.clear()
        self._credit(status.run, status.events)
        if status.busy:
            self.abort()

    def _words(self, address: int, count: int) -> list[int]:
        most = (MAX_PAYLOAD - 1) // 4
        out: list[int] = []
        for raw in self._series(
                (Command.READ, struct.pack("<II", at, min(most, address + count - at)))
                for at in range(address, address + count, most)):
            out += struct.unpack(f"<{len(raw) // 4}I", raw)
        return out

    def read_register(self, name: str) -> int:
        """Value of a register, by name. KeyError if there is none."""
        register = BY_NAME[name]
        return _value(register, self._words(register.address, register.words), register.address)

    def write_registers(self, values: Mapping[str, int]) -> None:
        """Write registers by name, in one frame where addresses follow each other.

        Raises KeyError for an unknown name, ValueError for one that cannot be written or a value
        that does not fit, BoardError if refused (model and run registers during a run).
        """
        words: dict[int, int] = {}
        for name, value in values.items():
            register = BY_NAME[name]
            if register.access not in ("rw", "w"):
                raise ValueError(f"register {name} cannot be written")
            if not 0 <= value < 1 << register.width:
                raise ValueError(f"register {name} holds {register.width} bits, not {value!r}")
            for i in range(register.words):
                words[register.address + i] = value >> 32 * i & 0xFFFFFFFF
        groups: list[tuple[int, list[int]]] = []
        for at in sorted(words):
            if not groups or at != groups[-1][0] + len(groups[-1][1]) or len(groups[-1][1]) >= 60:
                groups.append((at, []))
            groups[-1][1].append(words[at])
        for _ in self._series((Command.WRITE, struct.pack(f"<I{len(ws)}I", at, *ws))
                              for at, ws in groups):
            pass

    def status(self) -> Status:
        """State of the board, in one frame."""
        names = ("status", "error", "error_pc", "run", "events")
        at = BY_NAME["status"].address
        words = self._words(at, len(names))
        v = {name: _value(BY_NAME[name], words, at) for name in names}
        return Status(bool(v["status"] & STATUS_BUSY), bool(v["status"] & STATUS_READY),
                      v["error"], v["error_pc"], v["run"], v["events"])

    def counters(self) -> dict[str, int]:
        """Counters of the latest run by name (link/counters_table.py), taken at one moment."""
        words = self._words(COUNTER_BASE, 2 * len(COUNTERS))
        return {c.name: words[2 * i] | words[2 * i + 1] << 32 for i, c in enumerate(COUNTERS)}

    def reset(self) -> None:
        """Reset the core; the link and the memory keep their contents."""
        self.write_registers({"reset": RESET_MAGIC})
        self._adopt()

    def wait_ready(self, seconds: float = 2.0) -> None:
        """Wait until the memory is ready. BoardError after ``seconds``."""
        for _ in self._poll(seconds):
            if self.status().ready:
                return
        raise BoardError("the board's memory does not become ready; check its supply and that the "
                         "bitstream is the one for this board")

    def _poll(self, seconds: float) -> Iterator[None]:
        """Turns at growing distances, at least ten, for about ``seconds`` of the transport."""
        longest, begun = self.transport.timeout, self.transport.now()
        pause, turns = longest / 64, 0
        while turns < 10 or self.transport.now() - begun < seconds:
            yield
            self._receive(pause)
            turns, pause = turns + 1, min(2 * pause, longest)

    # --- memories ---------------------------------------------------------------------------------

    @property
    def _burst(self) -> int:
        """Bytes of memory that one frame carries."""
        bus = self.info.config.bus_bytes
        return min(MAX_PAYLOAD - 4, self.info.config.burst_words * bus) // bus * bus

    def _check_range(self, address: int, length: int) -> None:
        bus, size = self.info.config.bus_bytes, self.info.memory_bytes
        if address < 0 or address % bus:
            raise ValueError(f"address must be a multiple of {bus}, not {address!r}")
        if size and address + length > size:
            raise BoardError(f"bytes {address} to {address + length} do not fit the board's memory "
                             f"of {size} bytes; compile the model for this board")

    def write_memory(self, address: int, data: bytes, *, progress: Progress | None = None) -> None:
        """Write memory.

        address : int
            In bytes, a multiple of the bus width; data is padded with zeros to whole bus words.
        """
        self._check_range(address, len(data))
        bus, burst = self.info.config.bus_bytes, self._burst
        view = memoryview(bytes(data) + bytes(-len(data) % bus))
        done = 0
        for _ in self._series(
                (Command.WRITE_MEMORY,
                 (address + at).to_bytes(4, "little") + bytes(view[at:at + burst]))
                for at in range(0, len(view), burst)):
            done = min(done + burst, len(data))
            if progress:
                progress(done, len(data))

    def read_memory(self, address: int, length: int) -> bytes:
        """Read memory; ``address`` in bytes, a multiple of the bus width."""
        self._check_range(address, length)
        bus, burst = self.info.config.bus_bytes, self._burst
        whole = length + -length % bus
        return b"".join(self._series(
            (Command.READ_MEMORY, struct.pack("<II", address + at, min(burst, whole - at)))
            for at in range(0, whole, burst)))[:length]

    def verify_memory(self, address: int, data: bytes) -> list[int]:
        """Compare memory with what it should hold, by CRCs computed on the chip.

        Returns offsets of the blocks of :data:`CRC_BLOCK` bytes that differ. ``data`` is padded
        as in :meth:`write_memory`.
        """
        self._check_range(address, len(data))
        data = bytes(data) + bytes(-len(data) % self.info.config.bus_bytes)
        starts = range(0, len(data), CRC_BLOCK)
        answers = self._series(
            (Command.CRC_MEMORY,
             struct.pack("<II", address + at, min(CRC_BLOCK, len(data) - at))) for at in starts)
        return [at for at, raw in zip(starts, answers)
                if int.from_bytes(raw, "little") != crc32(data[at:at + CRC_BLOCK])]

    def write_program(self, program: bytes | Sequence[Instruction]) -> None:
        """Write the program memory from instruction 0: encoded, or a list of instructions."""
        if not isinstance(program, (bytes, bytearray, memoryview)):
            program = b"".join(map(encode, program))
        count, rest = divmod(len(program), INSTRUCTION_BYTES)
        if rest:
            raise ValueError(f"program must hold whole instructions of {INSTRUCTION_BYTES} bytes, "
                             f"not {len(program)!r} bytes")
        depth = self.info.config.prog_depth
        if count > depth:
            raise BoardError(f"the program has {count} instructions, the board holds {depth}; "
                             "compile the model for this board")
        most = (MAX_PAYLOAD - 4) // INSTRUCTION_BYTES
        for _ in self._series(
                (Command.WRITE_PROGRAM, at.to_bytes(4, "little")
                 + bytes(program[at * INSTRUCTION_BYTES:(at + most) * INSTRUCTION_BYTES]))
                for at in range(0, count, most)):
            pass

    def set_model(self, values: Mapping[str, int]) -> None:
        """Write the model registers: all of ``isa.MODEL_REGS``, by name."""
        missing = {f.name for f in MODEL_REGS} ^ set(values)
        if missing:
            raise ValueError(f"values must be those of MODEL_REGS; differing: {sorted(missing)!r}")
        self.write_registers(values)
        self._vocab = values["vocab"]

    def load(self, sections: Iterable[tuple[int, bytes]], *,
             program: bytes | Sequence[Instruction] | None = None,
             model: Mapping[str, int] | None = None, progress: Progress | None = None,
             verify: bool = True) -> None:
        """Load a model.

        Parameters
        ----------
        sections : iterable of (address, data)
            Memory contents; addresses in bytes. An image has one: ``[(0, image.memory)]``.
        program : bytes or list of Instruction, optional
        model : mapping, optional
            Model registers.
        progress : callable, optional
            progress(bytes done, bytes in all).
        verify : bool
            Compare CRCs computed on the chip; what differs is written once more.

        Raises
        ------
        BoardError
            It does not fit, or the memory does not keep what is written.
        """
        sections = list(sections)
        total, before = sum(len(data) for _, data in sections), 0
        self.wait_ready()
        # First what can be refused quickly.
        if program is not None:
            self.write_program(program)
        if model is not None:
            self.set_model(model)
        for address, data in sections:
            def advance(done: int, _of: int, before: int = before) -> None:
                if progress:
                    progress(before + done, total)
            self.write_memory(address, data, progress=advance)
            before += len(data)
        if not verify:
            return
        for address, data in sections:
            for at in self.verify_memory(address, data):
                part = bytes(data[at:at + CRC_BLOCK])
                self.write_memory(address + at, part)
                if self.verify_memory(address + at, part):
                    raise BoardError(
                        f"the board's memory does not keep what is written at {address + at:#x}; "
                        "lower the clock, or check the memory with another image")

    # --- runs -------------------------------------------------------------------------------------

    def run(self, tokens: Sequence[int], sampling: Sampling | None = None, *, max_new: int,
            stop_ids: Sequence[int] = (), start_pos: int = 0, draft_most: int = 0,
            draft_price: int = 0, base: int = 0, before: Sequence[int] = (),
            ) -> Generator[TokenEvent, None, None]:
        """Run a prompt; tokens as they come.

        Nothing is sent before the first ``next``. From then on the host sends only credits.
        A generator that is closed early, or left by an exception such as Ctrl-C, aborts the run and
        waits until the board is ready for another. Events without a token are not
        yielded; :attr:`reason` tells why a run ended.

        Parameters
        ----------
        tokens : sequence of int, 1..
            Prompt, at positions start_pos.. .
        sampling : Sampling, optional
            Greedy unless given.
        max_new : int
            Tokens to generate at most; 0 fills the cache only.
        stop_ids : sequence of int, at most 8
            Tokens that end the run (and are still yielded).
        start_pos : int
            The KV cache below is kept: a conversation goes on.
        draft_most : int
            Drafts that the board makes for a pass, at most: less than it has lanes; 0: none. The
            text is the same. Without top-k.
        draft_price : int
            What such a pass costs more than one without, in 1/256 of that; 0: always drafts. See
            :class:`meadowlark_hdl.draft.choice_golden.Choice`. Both are cut to their registers.
        base : int
            Chunks from the cache of the image's addresses to that of the sequence.
        before : sequence of int
            The sequence's tokens below start_pos, if another one ran since, for drafts alone.

        Raises
        ------
        BoardError
            The run does not fit the board, which may make fewer drafts, or none; a token is none
            of the loaded model's; or the run failed, which is raised in the generator.
        """
        context = self.info.config.context
        if start_pos < 0 or start_pos + len(tokens) > context:
            raise BoardError(f"the prompt needs {start_pos + len(tokens)} positions, the board has "
                             f"{context}; shorten it or start a new conversation")
        sampling = sampling or Sampling()
        self._check_drafts(draft_most, sampling)
        registers = self._registers(tokens, sampling, max_new, stop_ids) | {
            "start_pos": start_pos, "draft_most": draft_most,
            "draft_price": min(draft_price, MOST_PRICE)}
        assert not before or len(before) == start_pos, "all tokens below start_pos, or none"
        places = [Place(base, 0)] if self.info.config.batches else []
        return self._run_events([*before, *tokens], registers, places)

    def run_batch(self, tokens: Sequence[int], places: Sequence[Place],
                  samplings: Sequence[Sampling], *, max_new: int, stop_ids: Sequence[int] = (),
                  ) -> Generator[TokenEvent, None, None]:
        """Go on with several sequences, each by a token a pass. Event i is of sequence i modulo
        their number. :meth:`end` ends the run after any of them; else as :meth:`run`.

        Parameters
        ----------
        tokens : sequence of int, 1..lanes
            The last one of each sequence, whose keys are not in its cache yet.
        places : sequence of Place
            Where they belong.
        samplings : sequence of Sampling
            Alike but for their seeds, without top-k.
        max_new : int, 1..
            Passes at most: fewer where the token memory ends.
        stop_ids : sequence of int, at most 8
            Tokens that end the run with the pass in which one is drawn.

        Raises
        ------
        BoardError
            The board takes no batches, or not so many sequences; the run failed.
        """
        config, first = self.info.config, samplings[0]
        if not len(tokens) == len(places) == len(samplings):
            raise ValueError("each token of a batch needs a place and a sampling")
        if len(tokens) > config.turns:
            most = f"at most {config.turns} sequences" if config.batches else "one sequence"
            raise BoardError(f"a pass of the board takes {most}, not {len(tokens)}; run fewer at "
                             "once")
        if first.top_k:
            raise BoardError("with top-k a pass draws one token, so it takes one sequence; leave "
                             "top-k out, or run them one after the other")
        if len({(s.inv_t_mant, s.inv_t_shift, s.top_k) for s in samplings}) > 1:
            raise ValueError("sequences of a batch must be drawn alike but for their seeds")
        passes = min(max_new, context_limit(config) + 1 - len(tokens), 0xFFFF // len(tokens))
        registers = self._registers(tokens, first, passes, stop_ids) | {"batch": 1}
        seeds = [lane_seed(first.seed, s.seed) for s in samplings]
        return self._run_events(list(tokens), registers, places, seeds)

    def _registers(self, tokens: Sequence[int], sampling: Sampling, max_new: int,
                   stop_ids: Sequence[int]) -> dict[str, int]:
        """Those of a run, with what is wrong in any."""
        if not tokens:
            raise ValueError("tokens must not be empty")
        for token in tokens:
            if not 0 <= token < 1 << Config.TOKEN_BITS:
                raise ValueError(f"tokens must be in 0..{(1 << Config.TOKEN_BITS) - 1}, "
                                 f"not {token!r}")
            if self._vocab is not None and token >= self._vocab:
                raise BoardError(f"the prompt holds the token {token}, and the vocabulary of the "
                                 f"loaded model is 0..{self._vocab - 1}; use the tokenizer of the "
                                 "loaded image")
        if len(stop_ids) > STOP_IDS:
            raise BoardError(f"the board compares with at most {STOP_IDS} stop ids, "
                             f"not {len(stop_ids)}; give fewer")
        if max_new < 0:
            raise ValueError(f"max_new must not be negative, not {max_new!r}")
        registers = dict.fromkeys((f.name for f in RUN_REGS), 0) | {
            "prompt": len(tokens), "max_new": min(max_new, self.info.config.context),
            "inv_t_mant": sampling.inv_t_mant, "inv_t_shift": sampling.inv_t_shift,
            "top_k": sampling.top_k, "top_p": sampling.top_p, "seed": sampling.seed,
            "stop_count": len(stop_ids)}
        return registers | {f"stop_id_{i}": stop for i, stop in enumerate(stop_ids)}

    def _check_drafts(self, most: int, sampling: Sampling) -> None:
        config = self.info.config
        limit = config.P - 1 if config.drafts else 0
        if most > limit:
            raise BoardError(f"the board makes at most {limit} drafts for a pass, not {most}; ask "
                             "for fewer")
        if most and sampling.top_k:
            raise BoardError("with top-k a pass draws one token, so it has no drafts; leave one of "
                             "them out")

    def _run_events(self, tokens: list[int], registers: dict[str, int],
                    places: Sequence[Place] = (), seeds: Sequence[int] = (),
                    ) -> Generator[TokenEvent, None, None]:
        """tokens: those of the run, the last ones, and what stands before them. places, seeds: of
        slots."""
        self._counting, self.host_messages, self.reason = False, 0, Reason.RUNNING
        self._asked = False
        self._settle()
        # 0 is the number of no run. The last event of the run before may have come until here.
        number = self._run % 0xFFFF + 1
        self._run, self._next = number, 0
        self._events.clear()
        ended = False
        try:
            most = (MAX_PAYLOAD - 4) // 4
            start = registers["start_pos"] + registers["prompt"] - len(tokens)
            for _ in self._series(
                    (Command.WRITE_TOKENS,
                     struct.pack("<I", start + at) + b"".join(
                         t.to_bytes(4, "little") for t in tokens[at:at + most]))
                    for at in range(0, len(tokens), most)):
                pass
            self._write_slots(places, seeds)
            self.write_registers(registers)
            self._start(number)
            last = self.transport.now()
            while not ended:
                if not self._events:
                    if self._receive(self.transport.timeout) is None:
                        self._sort(self._parser.resync())
                    if not self._events and self.transport.now() - last >= PATIENCE:
                        self._alive()
                        last = self.transport.now()
                while self._events and not ended:
                    event = self._events.popleft()
                    if event.reason != Reason.RUNNING:
                        ended, self._counting, self.reason = True, False, event.reason
                    if event.reason not in (Reason.ABORTED, Reason.FILLED):
                        yield event
                    last = self.transport.now()
            if self.reason == Reason.ABORTED and (not self._asked or self.status().error):
                self._failed()
        finally:
            self._counting = False
            if not ended:
                self.abort()

    def _write_slots(self, places: Sequence[Place], seeds: Sequence[int]) -> None:
        """A frame for each slot: place, and seed behind it. High words act, so one may come
        twice."""
        at = BY_NAME["place"].address
        assert BY_NAME["lane_seed"].address == at + 2
        rows = [struct.pack("<IIHH", at, base, position, slot)
                for slot, (base, position) in enumerate(places)]
        rows = [row + struct.pack("<IHH", seed, 0, slot) for slot, (row, seed) in
                enumerate(zip(rows, seeds, strict=True))] if seeds else rows
        for _ in self._series((Command.WRITE, row) for row in rows):
            pass

    def end(self) -> None:
        """End the run under way; what it has drawn still comes."""
        self._asked = True
        self._command(Command.ABORT, struct.pack("<HH", self._run, 0))

    def _start(self, number: int) -> None:
        """START; from the frame itself on, whatever else is sent counts as a host message."""
        series = self._series([(Command.START, struct.pack("<HH", number, 0))])
        self._counting, self.host_messages = True, -1       # START is the last prompt frame
        for _ in series:
            pass

    def _alive(self) -> None:
        status = self.status()      # raises if nothing answers
        if not status.busy and status.events == self._next:
            self._run = status.run
            raise BoardError("the board dropped the run (was it reset?); load the image again")

    def _failed(self) -> None:
        """The last event said "aborted": by whom?"""
        status = self.status()
        if status.error:
            place = self.places(status.error_pc) if self.places else \
                f"instruction {status.error_pc}"
            raise BoardError(f"{sentence(status.error)} ({place})")
        raise BoardError("the run was aborted by somebody else; run it again")

    def _settle(self) -> Status:
        """Wait until the board is not busy."""
        for _ in self._poll(self.transport.timeout * self.retries):
            status = self.status()
            if not status.busy:
                return status
        raise BoardError("the board does not finish its run; reset it and load the image again")

    def abort(self) -> None:
        """End the run under way, if any, and wait until the board is ready for another.

        Raises BoardError if it does not become ready.
        """
        self._command(Command.ABORT, struct.pack("<HH", self._run, 0))
        # Events go on until the last one; each turn receives and acknowledges what is there.
        status = self._settle()
        if status.run == self._run and status.events != self._next:
            self._next = status.events
            self._credit(self._run, self._next)
        self._events.clear()
        self.reason = Reason.ABORTED


def _answers(answer: Frame, command: Frame) -> bool:
    """It is one, and as long as one to this command is."""
    if answer.type != command.type | ANSWER or not answer.payload:
        return False
    if answer.payload[0] != Result.OK:
        return True
    size = {Command.READ: 4, Command.READ_MEMORY: 1}.get(Command(command.type), 0) \
        * int.from_bytes(command.payload[4:8], "little")
    if command.type == Command.CRC_MEMORY:
        size = 4
    return len(answer.payload) == 1 + size


def _value(register: Register, words: Sequence[int], base: int = 0) -> int:
    at = register.address - base
    value = sum(words[at + i] << 32 * i for i in range(register.words))
    return value & (1 << register.width) - 1


def _refused(command: Command, code: int) -> BoardError:
    what: dict[int, str] = {
        Result.BAD_COMMAND: "does not know it; build the bitstream again with this version",
        Result.BAD_LENGTH: "says that its length is wrong; build the bitstream again with this "
                           "version",
        Result.BAD_ADDRESS: "says that it leaves its memories; compile the model for this board",
        Result.BUSY: "is in a run; end that first, or reset the board",
        Result.NOT_READY: "has no memory yet; wait a moment, then try again",
    }
    reason = what.get(code, f"answered {code}; build the bitstream again with this version")
    return BoardError(f"the board refused {command.name}: it {reason}")
