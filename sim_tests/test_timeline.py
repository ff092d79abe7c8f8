"""Timelines: slices add up to the chip's own counters, and the file is what Perfetto takes."""
import gzip
import json
import re
import sys
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from meadowlark.compile.disassemble import subjects
from meadowlark.run.targets import SimTarget
from meadowlark.run.timeline import Timeline
from meadowlark.sim.trace import STATES, Track
from meadowlark_hdl.compute.lane import BEAT_CYCLE
from meadowlark_hdl.isa import Op, Sink, Src
from meadowlark_hdl.sampler.sampler_golden import Sampling
from recordings import BOARD, commands, refused_before_the_work, small_model

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))
import timeline as picture

#: What an event of a phase has, by the trace event format.
REQUIRED = {"X": {"name", "ts", "dur", "pid", "tid"}, "i": {"name", "ts", "pid", "tid", "s"},
            "C": {"name", "ts", "pid", "args"}, "M": {"name", "pid", "args"}}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return small_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def target(source):
    with closing(SimTarget(BOARD, trace=True)) as sim:
        sim.load(source)
        yield sim


@pytest.fixture
def words(seed):
    rng = np.random.default_rng(seed)
    return lambda n: [0, *rng.integers(2, 128, n - 1).tolist()]


def record(timeline, target, source, name, prompt, *, max_new, after=None):
    """Run a prompt, up to so many tokens; returns the recording."""
    with timeline.recording(target, source.image, name), closing(target.generate(
            prompt, Sampling(), max_new=max_new, stop_ids=())) as events:
        for n, _ in enumerate(events, 1):
            if n == after:
                break
    return timeline.recordings[-1]


def slices_by_thread(events):
    found = defaultdict(list)
    names = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
    for e in events:
        if e["ph"] == "X":
            found[e["pid"], names[e["pid"], e["tid"]]].append(e)
    for some in found.values():
        some.sort(key=lambda e: (e["ts"], -e["dur"]))
    return found


@pytest.mark.parametrize("prompt, max_new, after", [
    (1, 3, None), (19, 1, None), (70, 2, None), (5, 100, 3)])
def test_slices_add_up_to_the_counters(target, source, words, prompt, max_new, after):
    """Exactly, of passes of one block and of several, and of a run that is given up."""
    found = record(Timeline(99), target, source, "run", words(prompt), max_new=max_new,
                   after=after)
    counters, totals = target.counters(), found.totals()
    assert found.whole and counters["array_active"] > 0
    assert totals == {name: counters[name] for name in totals}
    assert totals.keys() == {name for name in counters if name not in (
        "cycles_first_token", "saturations", "score_saturations", "drafted", "accepted")}

    spent = found.spent().values()
    assert sum(s.cycles for s in spent) == counters["cycles"]
    assert sum(s.instructions for s in spent) == counters["instructions"]
    assert all(s.cycles == s.array + sum(s.lost.values()) for s in spent)
    assert all(min(s.lost.values()) >= 0 for s in spent)
    lost = {cause: sum(s.lost[cause] for s in spent) for cause in found.instructions[0][1].lost}
    assert lost.pop("memory") + lost.pop("store") == counters["stall_memory"]
    assert lost == {cause: counters[f"stall_{cause}"] for cause in lost}

    if after is None:           # every tile is asked for, comes, fills a half, and is used
        tiles = sum(len(p.tiles) for p in found.passes)
        halves = np.concatenate([found.track(Track.HALF0), found.track(Track.HALF1)])
        used = halves[halves["state"] == STATES[Track.HALF0].index("in use") + 1]
        assert [len(found.track(Track.FETCH)), len(found.track(Track.READER)), len(used)] == \
            [tiles] * 3
        level = found.track(Track.WINDOW)
        assert level["count"].max() <= 2 * BOARD.config.fifo_words and level["count"][-1] == 0
        assert level["args"][:, :2].sum(axis=0).tolist() == [
            counters["bus_read_words"], counters["bus_write_words"]]
        assert len(found.track(Track.TOKEN)) == max_new
        assert (np.diff(level["end"].astype(int)) > 0).all()


def test_tiles_have_the_names_of_their_instructions(target, source, words):
    """What a half holds is of the instruction in execution."""
    timeline = Timeline(99)
    record(timeline, target, source, "run", words(37), max_new=3)
    events = list(timeline.recordings[0].events(1, 0))
    threads = slices_by_thread(events)
    issue = [e for e in threads[1, "Issue"] if not e["name"].startswith("wait")]
    begins = np.array([e["ts"] for e in issue])
    for half in range(2):
        for e in threads[1, f"Tile buffer, half {half}"]:
            if e["name"] == "in use":
                # Until the array has read the last beat, so long after it was asked for: SV may be
                # over by then.
                asked = e["ts"] + e["dur"] - BEAT_CYCLE
                last = issue[int(np.searchsorted(begins, asked, "right")) - 1]
                assert e["args"]["tile"].startswith(last["name"] + ","), (e, last)


def test_the_file_is_of_the_trace_event_format(target, source, words, tmp_path):
    """Its required keys; slices of a thread nest; runs follow each other."""
    timeline, counters = Timeline(99), []
    for name, prompt in (("first", 20), ("second", 1)):
        record(timeline, target, source, name, words(prompt), max_new=2)
        counters.append(target.counters())
    size = timeline.write(str(tmp_path / "t.json"))
    raw = (tmp_path / "t.json").read_bytes()
    assert size == len(raw)
    timeline.write(str(tmp_path / "t.json.gz"))
    assert gzip.decompress((tmp_path / "t.json.gz").read_bytes()) == raw
    whole = json.loads(raw)
    assert "cycle" in whole["otherData"]["unit"] and whole["displayTimeUnit"] in ("ms", "ns")
    events = whole["traceEvents"]
    for e in events:
        assert REQUIRED[e["ph"]] <= e.keys(), e
        assert isinstance(e["name"], str) and e["name"]
        assert all(type(e[key]) is int and e[key] >= 0 for key in ("ts", "dur", "pid", "tid")
                   if key in e), e
        if e["ph"] == "C":
            assert all(isinstance(v, (int, float)) for v in e["args"].values())
    assert {e["pid"] for e in events} == {1, 2}

    threads = slices_by_thread(events)
    for where, some in threads.items():
        ends: list[int] = []
        for e in some:
            while ends and ends[-1] <= e["ts"]:
                ends.pop()
            assert e["dur"] > 0 and (not ends or e["ts"] + e["dur"] <= ends[-1]), (where, e)
            ends.append(e["ts"] + e["dur"])
    for pid, want in enumerate(counters, 1):
        assert sum(e["dur"] for e in threads[pid, "Sequencer"]) == want["cycles"]
        issue = threads[pid, "Issue"]
        executed = [e for e in issue if "instruction" in e["args"]]
        assert len(executed) == want["instructions"]
        assert sum(e["args"]["array"] for e in executed) == want["array_active"] \
            == sum(e["args"]["beats"] for e in threads[pid, "Array"])
        assert sum(e["args"]["cycles"] for e in issue if e["name"] == "wait: vector") \
            == want["stall_vector"]
        assert sum(e["args"]["words"] for e in threads[pid, "Reader: tiles coming"]) \
            == want["bus_read_words"]
    assert max(e["ts"] + e["dur"] for e in threads[1, "Sequencer"]) == \
        min(e["ts"] for e in threads[2, "Sequencer"]) == counters[0]["cycles"]


def test_a_long_run_takes_no_more_than_its_first_passes(target, source, words):
    timeline = Timeline(2)
    short = record(timeline, target, source, "short", words(1), max_new=2)
    long = record(timeline, target, source, "long", words(1), max_new=12)
    assert short.whole and not long.whole and target.counters()["passes"] == 12
    assert len(long.passes) == 2 and len(long.records) <= len(short.records) + 99
    assert [pc for pc, _ in long.instructions] == [pc for pc, _ in short.instructions]
    assert target.sim.recorded().size == 0          # nothing is recorded any more


def test_what_instructions_work_on(source):
    """Matrices in the order of both lists, each all that its name says."""
    image, found = source.image, subjects(source.image)
    names = [t["name"] for t in image.tensors]
    starts = image.model_regs["prefill_pc"], image.model_regs["decode_pc"]
    for part in (range(*starts), range(starts[1], len(found))):
        linear = [found[pc] for pc in part if image.instructions[pc]["op"] == Op.LINEAR]
        assert list(dict.fromkeys(linear)) == names
        norms = [found[pc] for pc in part if image.instructions[pc]["op"] == Op.NORM]
        assert norms == [f"before {n}" for n in names if n.endswith((".k", ".gate_up", "head"))]
    for pc, i in enumerate(image.instructions):
        if i["op"] == Op.LINEAR and i["sink"] == Sink.LOGIT:
            assert found[pc] == "head"
        if i["op"] == Op.STORE:
            assert found[pc].endswith((".k", ".v"))
        if i["src"] == Src.KV:
            assert found[pc].startswith("layers.") and found[pc].count(".") == 1
        if i["op"] in (Op.EMBED, Op.ROPE, Op.END):
            assert found[pc] == ""


def test_the_picture(target, source, words, tmp_path):
    """A pass of prefill, a layer of it, a pass of decode, at 900 pixels; areas are times."""
    timeline = Timeline(99)
    record(timeline, target, source, "run", words(16), max_new=2)
    timeline.write(str(tmp_path / "t.json"))
    trace = json.loads((tmp_path / "t.json").read_text())
    root = ElementTree.fromstring(picture.draw(trace))
    assert root.get("width") == "900"
    titles = [t.text or "" for t in root.iter("{http://www.w3.org/2000/svg}text")
              if t.get("class") == "title"]
    assert [t.partition(":")[0] for t in titles[1:]] == [
        "A pass of prefill, 16 tokens at position 0", "A layer of it",
        "A pass of decode, 1 token at position 16"]
    prefill = picture.panels(trace["traceEvents"])[0]
    array = slices_by_thread(trace["traceEvents"])[1, "Array"]
    share = picture.coverage(array, prefill.begin, prefill.end)
    beats = sum(e["args"]["beats"] for e in array if e["ts"] < prefill.end)
    assert share.max() <= 1 + 1e-9
    assert share.mean() * (prefill.end - prefill.begin) == pytest.approx(beats)


@pytest.fixture
def command(target, source, monkeypatch, capsys, tmp_path):
    return commands(target, source, monkeypatch, capsys, tmp_path, lambda trace, waves: trace)


def test_bench(command, tmp_path):
    status, out, err, asked = command("bench", "-p", "9", "-n", "3", "--trace", "t.json",
                                      "--trace-passes", "2")
    assert status == 0 and asked == [True]
    assert "timeline of pp9 and the first 2 passes of tg3 in t.json" in err
    assert "ui.perfetto.dev" in err
    parts = out.split("\n\n")
    assert [part.split("|")[1].strip() for part in parts[1::2]] == ["pp9", "tg3"]
    assert "\n| LINEAR -> logit " in parts[1] and "\n| all " in parts[1]
    assert [part[:19] for part in parts[2::2]] == ["memory bus of pp9: ", "memory bus of tg3: "]
    events = json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    assert [e["args"]["name"].split(",")[0] for e in events if e["name"] == "process_name"] == [
        "pp9", "tg3"]


@pytest.mark.parametrize("form", ["csv", "json"])
def test_bench_for_programs(command, form):
    """What a program reads has no table beside it."""
    plain = command("bench", "-p", "5", "-n", "0", "--format", form)[1]
    _, out, err, asked = command("bench", "-p", "5", "-n", "0", "--format", form, "--trace", "t")
    # A refresh may fall otherwise, so the numbers may differ.
    assert re.sub(r"[\d.]+", "", out) == re.sub(r"[\d.]+", "", plain)
    assert "timeline of pp5 in t;" in err and asked == [False, True]


def test_generate(command, tmp_path):
    status, out, err, _ = command("generate", "--ids", "5,7,9", "-n", "3", "--trace", "t.json")
    assert status == 0 and "timeline of generate in t.json" in err
    assert (status, out) == command("generate", "--ids", "5,7,9", "-n", "3")[:2]
    events = json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    tokens = [e["name"] for e in events if e["ph"] == "i"]
    assert tokens == [f"token {t}" for t in out.strip().split(",")[-3:]]


@pytest.mark.parametrize("name", ["bench", "generate"])
@pytest.mark.parametrize("args, said", [
    (["--trace", "no/t.json"], "cannot write no/t.json: there is no folder"),
    (["--trace", "."], "cannot write .: it is a folder"),
    (["--trace", "m.mlk"], "cannot write m.mlk: it is read by this command as well"),
    (["--trace", "t", "--json", "t"], "cannot write t: it is another output"),
    (["--trace", "-"], "--trace needs a file"),
    (["--trace-passes", "3"], "--trace-passes limits --trace"),
    (["--trace", "t", "--trace-passes", "0"], "--trace-passes"),
    (["--trace", "t", "--target", "pins"], "--trace shows what --target sim simulates, not pins"),
    (["--trace", "t", "--target", "/dev/ttyUSB9"], "simulates, not /dev/ttyUSB9")])
def test_errors_come_before_the_work(command, tmp_path, name, args, said):
    refused_before_the_work(command, tmp_path, name, args, said)
