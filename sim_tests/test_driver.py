"""The driver against a model of the board that loses, damages and repeats frames."""
import random
import struct

import pytest
from meadowlark.link.driver import BoardError, Driver
from meadowlark.link.fake_board import FakeBoard, invented
from meadowlark.link.frames import Frame, FrameParser
from meadowlark.link.ports import open_transport
from meadowlark.link.transport import LoopbackTransport
from meadowlark_hdl.link.counters_table import COUNTERS
from meadowlark_hdl.config import Config
from meadowlark_hdl.control.errors import Error
from meadowlark_hdl.control.sequencer_golden import Place
from meadowlark_hdl.sampler.sampler_golden import Sampling, lane_seed
from meadowlark_hdl.isa import INSTRUCTION_BYTES, MODEL_REGS, Instruction, Op, encode
from meadowlark_hdl.link.protocol import (BY_NAME, EVENT_FORMAT, FLUSH_BYTES, MAX_PAYLOAD,
                                          REGISTERS, SYNC, TOKEN, Command, Reason)

LOSSES = [0.0, 0.02, 0.1]


def expected(prompt, count):
    history = list(prompt)
    for _ in range(count):
        history.append(invented(history)[0])
    return history[len(prompt):]


# --- frames ---------------------------------------------------------------------------------------

def test_frames_survive_any_cut_and_any_noise(seed):
    rng = random.Random(seed)
    frames = [Frame(rng.randrange(256), rng.randrange(256), rng.randbytes(n))
              for n in [0, 1, 2, MAX_PAYLOAD - 1, MAX_PAYLOAD,
                        *(rng.randrange(MAX_PAYLOAD + 1) for _ in range(50))]]
    raw = b""
    for frame in frames:
        # Noise with false syncs, but none that could hold the next frame for ever
        raw += bytes(x for x in rng.randbytes(rng.randrange(20)) if x != SYNC) + frame.encode()
    parser, got, at = FrameParser(), [], 0
    while at < len(raw):
        step = rng.randrange(1, 40)
        got += parser.feed(raw[at:at + step])
        at += step
    assert got == frames and parser.bad == 0


def test_a_false_sync_hides_no_frame():
    good = Frame(1, 2, b"abc")
    # A sync that announces 256 bytes: the frame within is found when more bytes come, or on resync
    parser = FrameParser()
    assert parser.feed(bytes((SYNC, 0, 0, 0, 1)) + good.encode()) == []
    assert parser.resync() == [good]
    parser = FrameParser()
    assert parser.feed(bytes((SYNC, 0, 0, 0, 1)) + good.encode() + bytes(300)) == [good]


def test_every_single_bit_error_is_noticed():
    raw = Frame(3, 4, bytes(range(8))).encode()
    for bit in range(8 * len(raw)):
        broken = bytearray(raw)
        broken[bit // 8] ^= 1 << bit % 8
        assert FrameParser().feed(bytes(broken)) == []


def test_payload_too_long():
    with pytest.raises(ValueError, match=r"^payload must have at most 256 bytes, not 257$"):
        Frame(1, 1, bytes(257)).encode()


def test_register_table_has_no_overlap():
    words = [r.address + i for r in REGISTERS for i in range(r.words)]
    assert len(words) == len(set(words)) and max(words) < 128
    assert list(BY_NAME.values()) == list(REGISTERS)


# --- driver ---------------------------------------------------------------------------------------

@pytest.mark.parametrize("loss", LOSSES)
def test_load_and_verify(seed, loss):
    rng = random.Random(seed)
    board = FakeBoard(loss=loss, seed=seed)
    driver = Driver(board, retries=50)
    assert driver.info.config == board.config and driver.info.name == "fake"
    assert driver.info.memory_bytes == 1 << 16 and driver.info.clock_hz == 100_000_000
    program = [Instruction(Op.LINEAR, addr=rng.randrange(1 << 27)) for _ in range(100)]
    sections = [(0, rng.randbytes(5001)), (1 << 14, rng.randbytes(3000))]
    model = {f.name: rng.randrange(1 << f.bits) for f in MODEL_REGS}
    steps = []
    driver.load(sections, program=program, model=model,
                progress=lambda done, total: steps.append((done, total)))
    for at, data in sections:
        assert board.memory[at:at + len(data)] == data
        assert driver.read_memory(at, len(data)) == data
    assert [board.program[i] for i in range(100)] == [encode(x) for x in program]
    assert {name: driver.read_register(name) for name in model} == model
    assert steps == sorted(steps) and steps[-1] == (8001, 8001)


@pytest.mark.parametrize("loss", LOSSES)
def test_tokens_come_once_in_order_whatever_is_lost(seed, loss):
    board = FakeBoard(loss=loss, seed=seed)
    driver = Driver(board, retries=50)
    prompt = [1, 70, 3000] * 50             # several frames of tokens
    events = list(driver.run(prompt, max_new=200, stop_ids=[40_000]))
    assert [e.token for e in events] == expected(prompt, 200)
    assert [e.index for e in events] == list(range(200))
    assert all(e.crc == invented((prompt + expected(prompt, 200))[:150 + i])[1]
               for i, e in enumerate(events))
    assert [e.reason for e in events] == [Reason.RUNNING] * 199 + [Reason.MAX_NEW]
    assert driver.reason == Reason.MAX_NEW
    assert len(board.runs) == 1             # a repeated START is executed once
    if not loss:
        driver.status()                     # after the last token: not counted
        assert driver.host_messages == 0
        # From START on: credits only
        start = board.commands.index(Command.START)
        assert set(board.commands[start + 1:-1]) == {Command.CREDIT}
    # The conversation goes on where it was: with the last token, whose keys are to come.
    more = list(driver.run([events[-1].token, 5], max_new=3, start_pos=349))
    assert [e.token for e in more] == expected(prompt + expected(prompt, 200) + [5], 3)
    assert board.runs[1] == board.runs[0] + 1


def test_sampling_and_stop(seed):
    board = FakeBoard()
    driver = Driver(board)
    third = expected([9], 3)[2]
    sampling = Sampling(inv_t_mant=40_000, inv_t_shift=14, top_k=5, top_p=60_000, seed=seed)
    events = list(driver.run([9], sampling, max_new=50, stop_ids=[7, third]))
    assert [e.token for e in events] == expected([9], 3) and driver.reason == Reason.STOP
    for name in ("inv_t_mant", "inv_t_shift", "top_k", "top_p", "seed"):
        assert board.words[BY_NAME[name].address] == getattr(sampling, name)
    assert list(driver.run([9], max_new=0)) == [] and driver.reason == Reason.FILLED


@pytest.mark.parametrize("loss", LOSSES)
def test_sequences_go_on_together(seed, loss):
    """Each has what it would have alone, in a cache of its own; a run may be ended at any time, and
    what was drawn still comes."""
    rng = random.Random(seed)
    board = FakeBoard(loss=loss, seed=seed)
    driver = Driver(board, retries=40)
    texts = [[rng.randrange(1000) for _ in range(rng.randrange(1, 30))] for _ in range(4)]
    prompts, bases = [len(text) for text in texts], [0, 50, 7, 1 << 26]
    for text, base in zip(texts, bases, strict=True):
        text += [e.token for e in driver.run(text, max_new=1, base=base)]
    while min(map(len, texts)) < 60:
        some = rng.sample(range(4), rng.randrange(1, 5))
        draws = [Sampling(seed=rng.getrandbits(32)) for _ in some]
        places = [Place(bases[k], len(texts[k]) - 1) for k in some]
        passes, left = rng.randrange(1, 9), rng.choice([0, 1, rng.randrange(30)])
        whole = expected(texts[some[0]], passes)
        stop = [rng.choice(whole)] if rng.random() < 0.3 else []
        run = driver.run_batch([texts[k][-1] for k in some], places, draws, max_new=passes,
                               stop_ids=stop)
        for i, event in enumerate(run):
            assert event.index == i
            texts[some[i % len(some)]].append(event.token)
            left -= 1
            if not left:
                driver.end()
        if driver.reason == Reason.MAX_NEW:
            assert i + 1 == passes * len(some)
        elif driver.reason == Reason.STOP:
            assert set(stop) & {texts[k][-1] for k in some} and (i + 1) % len(some) == 0
        else:
            assert driver.reason == Reason.ABORTED and left <= 0
    for text, prompt in zip(texts, prompts, strict=True):
        assert text[prompt:] == expected(text[:prompt], len(text) - prompt)
    assert [board.seeds[slot] for slot in range(len(some))] == [
        lane_seed(draws[0].seed, draw.seed) for draw in draws]


def test_batches_that_cannot_be():
    place, draw = Place(0, 1), Sampling()
    driver = Driver(FakeBoard())
    with pytest.raises(BoardError, match="at most 4 sequences, not 5; run fewer"):
        driver.run_batch([1] * 5, [place] * 5, [draw] * 5, max_new=1)
    with pytest.raises(BoardError, match="with top-k a pass draws one token"):
        driver.run_batch([1], [place], [Sampling(1, 1, top_k=2)], max_new=1)
    with pytest.raises(ValueError, match="alike but for their seeds"):
        driver.run_batch([1] * 2, [place] * 2, [draw, Sampling(1, 1)], max_new=1)
    with pytest.raises(ValueError, match="needs a place"):
        driver.run_batch([1] * 2, [place], [draw] * 2, max_new=1)
    driver = Driver(FakeBoard(Config(W=8, P=4, bus_bytes=2, batches=False)))
    with pytest.raises(BoardError, match="takes one sequence, not 2"):
        driver.run_batch([1] * 2, [place] * 2, [draw] * 2, max_new=1)
    assert Command.START not in driver.transport.commands


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("after", [1, 3, 90])
def test_a_cancelled_run_leaves_the_board_ready(seed, loss, after):
    board = FakeBoard(loss=loss, seed=seed)
    driver = Driver(board, retries=50)
    run = driver.run([1, 2], max_new=500)
    for _ in range(after):
        next(run)
    run.close()
    assert not board.busy and driver.reason == Reason.ABORTED
    assert [e.token for e in driver.run([4], max_new=5)] == expected([4], 5)


def test_the_last_event_of_a_run_may_come_as_the_next_begins(monkeypatch):
    """The board is no longer busy then; the event is not the next run's."""
    driver = Driver(FakeBoard())
    run = driver.run([1, 2, 3], max_new=50)
    next(run)
    run.close()
    settle = driver._settle

    def settle_late():
        status = settle()
        late = struct.pack(EVENT_FORMAT, driver._run, driver._next, 0, 0, Reason.ABORTED)
        driver._sort([Frame(TOKEN, 0, late)])
        return status
    monkeypatch.setattr(driver, "_settle", settle_late)
    assert [event.token for event in driver.run([5], max_new=4)] == expected([5], 4)


def test_a_lost_abort_is_sent_again_while_tokens_come():
    """A run is never silent, so silence cannot be what tells that the frame was lost."""
    board = FakeBoard()
    driver = Driver(board)
    run = driver.run([1, 2], max_new=4000)
    for _ in range(3):
        next(run)
    real, lost = board.write, []

    def write(data):
        if not lost and len(data) > 1 and data[1] == Command.ABORT:
            lost.append(data)
        else:
            real(data)
    board.write = write
    run.close()
    assert lost and not board.busy
    assert driver.status().events < 200


def test_ctrl_c_during_the_prompt(seed):
    board = FakeBoard()
    driver = Driver(board)
    real, calls = board.read, []

    def read(max, timeout):
        calls.append(max)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(max, timeout)
    board.read = read
    with pytest.raises(KeyboardInterrupt):
        list(driver.run([1] * 300, max_new=10))
    assert not board.busy
    assert [e.token for e in driver.run([4], max_new=5)] == expected([4], 5)


def test_a_host_that_died_leaves_nothing_in_the_way():
    board = FakeBoard()
    run = Driver(board).run([1, 2], max_new=500)
    for _ in range(5):
        next(run)
    second = Driver(board)                  # connects in the middle of the run
    assert not board.busy
    assert [e.token for e in second.run([4], max_new=5)] == expected([4], 5)
    assert board.runs[0] != board.runs[1]


def test_the_ring_holds_the_board_back_until_the_host_reads():
    board = FakeBoard()
    driver = Driver(board)
    run = driver.run([1], max_new=300)
    first = next(run)
    for _ in range(500):                    # the host does something else
        board._work()
    assert len(board._ring) == 64 and board.busy
    assert [first.token] + [e.token for e in run] == expected([1], 300)


@pytest.mark.parametrize("code", [int(x) for x in Error if x] + [200])
def test_errors_say_what_to_do(code):
    board = FakeBoard()
    driver = Driver(board)
    board.fail_with = code
    with pytest.raises(BoardError, match=r"\(instruction 7\)$") as error:
        list(driver.run([1], max_new=1))
    assert len(str(error.value)) > 40
    assert [e.token for e in driver.run([4], max_new=2)] == expected([4], 2)


def test_a_lost_frame_costs_no_waiting():
    """The answer to a later frame tells: repeated at once, not after a silence."""
    board = FakeBoard()
    driver = Driver(board)
    real_write, real_read, sent, silent = board.write, board.read, [], []

    def write(data):
        sent.append(data)
        if len(sent) not in (3, 9):
            real_write(data)

    def read(max, timeout):
        data = real_read(max, timeout)
        silent.append(not data)
        return data
    board.write, board.read = write, read
    data = bytes(range(256)) * 20
    driver.write_memory(0, data)
    assert board.memory[:len(data)] == data and silent and not any(silent)
    assert len(sent) < len(data) / 252 + 1 + 2 * 6


def test_events_of_another_run_are_ignored():
    board = FakeBoard()
    driver = Driver(board)
    run = driver.run([1], max_new=9)
    got = [next(run).token]
    for index in range(3):
        payload = struct.pack(EVENT_FORMAT, board.runs[0] + 1, index, 9999, 0, 0)
        board._out += Frame(TOKEN, index, payload).encode()
    assert got + [e.token for e in run] == expected([1], 9)


def test_events_that_end_for_no_known_reason_are_ignored():
    board = FakeBoard()
    driver = Driver(board)
    run = driver.run([1], max_new=9)
    got = [next(run).token]
    for reason in (6, 255):
        payload = struct.pack(EVENT_FORMAT, board.runs[0], 1, 9999, 0, reason)
        board._out += Frame(TOKEN, 1, payload).encode()
    assert got + [e.token for e in run] == expected([1], 9)


def test_an_old_run_repeated_for_ever_delays_nothing():
    """The last acknowledgement of a run got lost, and so does a command of the next one: the
    board repeats the old event more often than the host waits for silence."""
    board = FakeBoard()
    driver = Driver(board)
    real_write, real_read, lost, reads = board.write, board.read, [], []
    list(driver.run([1], max_new=3))
    event = struct.pack(EVENT_FORMAT, board.runs[0], 2, 9999, 0, Reason.MAX_NEW)
    acknowledged = []

    def write(data):
        kind = data[1] if len(data) > 1 else 0
        if kind == Command.CREDIT and data[5:9] == struct.pack("<HH", board.runs[0], 3):
            acknowledged.append(data)
        if kind == Command.WRITE_TOKENS and not lost:
            lost.append(data)
        else:
            real_write(data)

    def read(max, timeout):
        reads.append(max)
        assert len(reads) < 40
        return real_read(max, timeout) or (
            b"" if acknowledged else Frame(TOKEN, 2, event).encode())
    board.write, board.read = write, read
    assert [e.token for e in driver.run([4], max_new=5)] == expected([4], 5)
    assert lost and acknowledged


def test_a_host_is_not_deaf_beside_events_that_it_may_not_acknowledge():
    """Before it has adopted the run that an earlier host left, nothing is silent either."""
    board = FakeBoard()
    next(run := Driver(board).run([1, 2], max_new=500))
    real_write, real_read, lost, reads = board.write, board.read, [], []

    def write(data):
        if not lost and len(data) > 1 and data[1] == Command.READ:
            lost.append(data)
        else:
            real_write(data)

    def read(max, timeout):
        reads.append(max)
        assert len(reads) < 400
        if timeout and not board._out:      # sent again and again, without a pause
            board._sent = board._first
        return real_read(max, timeout)
    board.write, board.read = write, read
    second = Driver(board)
    assert lost and not board.busy
    assert [e.token for e in second.run([4], max_new=5)] == expected([4], 5)
    del run


def test_counters_by_name():
    board = FakeBoard()
    driver = Driver(board)
    board.counters = [(i + 1) * 0x1_2345_6789 for i in range(len(COUNTERS))]
    assert driver.counters() == {c.name: board.counters[i] for i, c in enumerate(COUNTERS)}


def test_memory_that_does_not_keep_is_noticed():
    class Leaky(FakeBoard):
        def _execute(self, frame):
            answer = super()._execute(frame)
            self.memory[100] = 0x55
            return answer
    with pytest.raises(BoardError, match=r"does not keep what is written at 0x0; "):
        Driver(Leaky()).load([(0, bytes(1000))])


def test_a_dead_board():
    written = []

    class Dead(FakeBoard):
        def write(self, data): written.append(data)
    with pytest.raises(BoardError, match=r"^the board does not answer; check cable and power, "):
        Driver(Dead(), retries=3)
    # Each repetition comes after zeros that end whatever frame the board believes to be in.
    assert written == [bytes(FLUSH_BYTES), written[1]] * 4
    with pytest.raises(BoardError, match=r"^what is at the port is no Meadowlark.* and no answer"):
        Driver(LoopbackTransport())


@pytest.mark.parametrize("register, message", [
    ("magic", "is not a Meadowlark"), ("version", "speaks version"),
    ("isa", "another instruction set"),
    ("counters", "^the board has other counters than this program; build the bitstream again")])
def test_a_foreign_board(register, message):
    board = FakeBoard()
    board.words[BY_NAME[register].address] ^= 0x10
    with pytest.raises(BoardError, match=message):
        Driver(board)


def test_memory_not_ready():
    board = FakeBoard()
    board.ready = False
    driver = Driver(board)
    with pytest.raises(BoardError, match=r"^the board's memory does not become ready; "):
        driver.load([(0, bytes(8))])
    with pytest.raises(BoardError, match=r"^the board refused WRITE_MEMORY: it has no memory yet"):
        driver.write_memory(0, bytes(8))


def test_what_does_not_fit_is_refused_before_anything_is_sent():
    board = FakeBoard()
    driver = Driver(board)
    before = len(board.commands)
    with pytest.raises(BoardError, match=r"^the prompt needs 1025 positions, the board has 1024; "):
        driver.run([1] * 1025, max_new=1)
    with pytest.raises(BoardError, match=r"^bytes 65536 to 65538 do not fit"):
        driver.write_memory(65536, b"ab")
    with pytest.raises(BoardError, match=r"^the program has 2049 instructions"):
        driver.write_program(bytes(INSTRUCTION_BYTES * 2049))
    with pytest.raises(BoardError, match=r"^the board compares with at most 8 stop ids, not 9; "):
        driver.run([1], max_new=1, stop_ids=range(9))
    P = board.config.P
    with pytest.raises(BoardError, match=f"^the board makes at most {P - 1} drafts for a pass, "
                                         f"not {P}; "):
        driver.run([1], max_new=1, draft_most=P)
    with pytest.raises(BoardError, match=r"^with top-k a pass draws one token"):
        driver.run([1], Sampling(1 << 15, 15, top_k=4), max_new=1, draft_most=1)
    with pytest.raises(ValueError, match=r"^tokens must not be empty$"):
        driver.run([], max_new=1)
    with pytest.raises(ValueError, match=r"^tokens must be in 0\.\.524287, not 524288$"):
        driver.run([1 << 19], max_new=1)
    with pytest.raises(ValueError, match=r"^max_new must not be negative, not -1$"):
        driver.run([1], max_new=-1)
    with pytest.raises(ValueError, match=r"^address must be a multiple of 2, not 1$"):
        driver.read_memory(1, 2)
    with pytest.raises(ValueError, match="^program must hold whole instructions of "
                       f"{INSTRUCTION_BYTES} bytes, not {INSTRUCTION_BYTES + 1} bytes"):
        driver.write_program(bytes(INSTRUCTION_BYTES + 1))
    with pytest.raises(ValueError, match=r"^register W cannot be written$"):
        driver.write_registers({"W": 4})
    with pytest.raises(ValueError, match=r"^register seed holds 32 bits, not 4294967296$"):
        driver.write_registers({"seed": 1 << 32})
    with pytest.raises(ValueError, match=r"^values must be those of MODEL_REGS; "):
        driver.set_model({"vocab": 1})
    assert len(board.commands) == before


def test_tokens_beyond_the_vocabulary_are_not_sent():
    board = FakeBoard()
    driver = Driver(board)
    assert list(driver.run([1 << 18], max_new=1))       # what a board holds is not known yet
    driver.load([], model={f.name: 40 if f.name == "vocab" else 0 for f in MODEL_REGS})
    before = len(board.commands)
    with pytest.raises(BoardError, match=r"^the prompt holds the token 40, and the vocabulary of "
                                         r"the loaded model is 0\.\.39; use the tokenizer of the "
                                         r"loaded image$"):
        driver.run([0, 39, 40, 3], max_new=1)
    assert len(board.commands) == before
    assert list(driver.run([0, 39], max_new=1))


def test_targets():
    for bad in ("nowhere", "tcp:host", "tcp:host:x", "/dev/null@fast"):
        with pytest.raises(ValueError, match="must be"):
            open_transport(bad)
    with pytest.raises(OSError, match=r"^there is no port /dev/does-not-exist; "):
        open_transport("/dev/does-not-exist")


def test_socket():
    import socket
    from threading import Thread

    from meadowlark.link.transport import SocketTransport
    board = FakeBoard()
    server = socket.create_server(("127.0.0.1", 0))
    server.settimeout(20)

    def serve():
        peer, _ = server.accept()
        with peer:
            peer.settimeout(0.005)
            while True:
                try:
                    data = peer.recv(4096)
                    if not data:
                        return
                    board.write(data)
                except TimeoutError:
                    pass
                while out := board.read(4096, 0.005):
                    peer.sendall(out)
    thread = Thread(target=serve, daemon=True)
    thread.start()
    with Driver(SocketTransport("127.0.0.1", server.getsockname()[1])) as driver:
        assert [e.token for e in driver.run([4], max_new=20)] == expected([4], 20)
    thread.join(20)
    server.close()
    assert not thread.is_alive()
