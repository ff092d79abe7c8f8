#!/usr/bin/env python3
"""Break the gateware in one small way at a time and see whether the block's tests notice.

Each mutant is a piece of text in one file and what replaces it. The tree is copied to a temporary
directory; nothing here is touched. A mutant is *caught* if its tests fail or never end, *survived*
if they pass, and *void* if it does not even build: then it has to be written anew.
"""
from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HDL = Path("hdl/meadowlark_hdl")
FOLDERS = ("hdl", "host", "boards", "sim_tests")


@dataclass(frozen=True)
class Mutant:
    """``what`` breaks when ``old`` becomes ``new`` in ``file``; ``test`` should notice."""
    file: str
    test: str
    what: str
    old: str
    new: str


def M(file, test, what, old, new):
    """A mutant of ``hdl/meadowlark_hdl/<file>.py``, to be caught by ``test_<test>.py``."""
    return Mutant(str(HDL / f"{file}.py"), f"sim_tests/test_{test}.py", what, old, new)


MUTANTS = [
    # Arithmetic: rounding, saturation, widths.
    M("compute/requant", "requant", "carry between limbs loses a bit",
      "products[0][LIMB:33])", "products[0][LIMB:32])"),
    M("compute/requant", "requant", "bias a cycle early",
      "bias = delay(m, self.bias, before + narrow.latency,",
      "bias = delay(m, self.bias, before + narrow.latency - 1,"),
    M("compute/requant", "requant", "upper limit one too low",
      "-1 << 31, (1 << 31) - 1)", "-1 << 31, (1 << 31) - 2)"),
    M("compute/narrow", "narrow", "rounds down instead of half up",
      "whole[:bits + 1].as_signed() + half)", "whole[:bits + 1].as_signed())"),
    M("compute/narrow", "narrow", "saturation blind to one bit",
      "unequal(whole[bits:]))", "unequal(whole[bits + 1:]))"),
    M("compute/narrow", "narrow", "the small limit is not used",
      "Mux(self.small, limit(small), limit(bits))", "limit(bits)"),
    M("compute/rope", "rope", "rotates the wrong way",
      'self.cos) - times("b_sin"', 'self.cos) + times("b_sin"'),
    M("compute/swiglu", "swiglu", "silu rounded down",
      "gated[15:] + gated[14])", "gated[15:])"),
    M("compute/function", "function", "reciprocal rounded down",
      "Cat(Const(512, 10), base)", "Cat(Const(0, 10), base)"),
    M("compute/function", "function", "sigmoid of negative values off by one",
      "32768 - positive, positive", "32767 - positive, positive"),
    M("compute/function", "function", "leading one mistaken",
      "flags[3] | (flags[1] & ~flags[2])", "flags[3] | flags[1]"),
    M("compute/residual", "residual", "sum wraps around",
      "Mux(over, Mux(total[-1], -1 << bits - 1, (1 << bits - 1) - 1), total)", "total"),
    M("compute/residual", "residual", "square of the wrong leading bits",
      "drop5.eq(unequal(new[17:]))", "drop5.eq(unequal(new[18:]))"),
    M("compute/residual", "residual", "sum of squares not started anew",
      "(m, self.add & ~self.first, at", "(m, self.add, at"),
    M("compute/norm", "norm", "normalised value rounded down",
      "root[16:] + root[15])", "root[16:])"),
    M("compute/norm", "norm", "exponent of the root rounded up",
      "exponent.eq(self.k >> 1)", "exponent.eq((self.k + 1) >> 1)"),

    # Softmax and array.
    M("compute/softmax", "softmax", "score rounded down",
      "rounded.eq((fine + 1) >> 1)", "rounded.eq(fine >> 1)"),
    M("compute/softmax", "softmax", "maximum kept from the block before",
      "begins.eq(self.w_first | another)", "begins.eq(another)"),
    M("compute/softmax", "softmax", "small probabilities cut off",
      "Mux(x8[8:] > 17, 17, x8[8:])", "Mux(x8[8:] > 14, 17, x8[8:])"),
    M("compute/softmax", "softmax", "a probability goes to the next one's block",
      "sum_wr.addr.eq(delay(m, self.sum_block, 1, name=\"sum_at\"))",
      "sum_wr.addr.eq(self.sum_block)"),
    M("compute/softmax", "softmax", "mask a key late",
      "Mux(hidden[4], 0,", "Mux(hidden[5], 0,"),
    M("compute/lane", "tiling_engine", "a lane does not see its own position",
      "c.sc_age > self.index", "c.sc_age >= self.index"),
    M("compute/lane", "tiling_engine", "values added to those of the last query",
      "pair.keep.eq(near[i].acc_keep)", "pair.keep.eq(near[i].sel_p)"),
    M("compute/lane", "tiling_engine", "adder tree cut to 36 bits",
      "level, width = level + 1, width + 1", "level += 1"),
    M("compute/product_pair", "product_pair", "the product of the second pair in broadcast mode",
      "Mux(broadcast, 0, products[1])", "products[1]"),
    M("compute/product_pair", "product_pair", "opcode: rounding constant instead of C",
      "self.keep, self.keep, 0, 0, 0, 1, 0]", "self.keep, self.keep, self.keep, 0, 0, 1, 0]"),
    M("compute/issue", "tiling_engine", "a slice comes again too soon",
      "held.eq(short.replicate(len(held)))", "held.eq(short)"),
    M("compute/issue", "tiling_engine", "drained in the order of slices",
      "Cat(element[:log2_parts], slot_addr[log2_parts:])", "slot_addr"),
    M("compute/issue", "tiling_engine", "rows start a cycle too soon",
      "with m.If(first_beat):\n                        m.d.sync += hold_rows(P - 1)",
      "with m.If(first_beat):\n                        m.d.sync += hold_rows(P - 2)"),
    M("compute/issue", "tiling_engine", "last tile taken for a full one",
      "rows = Mux(last_tile, instr.last_rows, instr.rows)", "rows = instr.rows"),
    M("compute/issue", "tiling_engine", "one key too many in a ragged tile",
      "Mux(fewer, unseen_end, keys_end)", "keys_end"),

    # Flow: back-pressure, reservation, order, throughput.
    M("memory/fifo", "fifo", "queue takes one element too many",
      "ready.eq(level != self.depth - 1)", "ready.eq(level != self.depth)"),
    M("memory/fifo", "fifo", "four read credits for a way of five cycles",
      "CREDITS = 8 ", "CREDITS = 4 "),
    M("memory/axi", "axi", "bursts leave their page", "PAGE_BYTES = 4096 ", "PAGE_BYTES = 8192 "),
    M("memory/axi", "axi", "wlast a word too soon", "last.eq(left == 1)", "last.eq(left == 2)"),
    M("memory/axi", "axi", "a write is done with its first burst",
      "axi.bvalid & finals.o.payload)", "axi.bvalid)"),
    M("memory/axi", "axi", "errors of writes are not seen",
      "(axi.bvalid & axi.bresp[1]) |", ""),
    M("memory/litedram", "litedram", "reads are asked for without room",
      "r_ask.eq(r_busy & (room != 0))", "r_ask.eq(r_busy)"),
    M("memory/litedram", "litedram", "a burst's first word is the native word's first",
      "lanes.i.payload.first.eq(r_lane)", "lanes.i.payload.first.eq(0)"),
    M("memory/litedram", "litedram", "strobes of the word before are left",
      "m.d.sync += [full.eq(0), gathered.strb.eq(0)]", "m.d.sync += full.eq(0)"),
    M("memory/litedram", "litedram", "a write goes with its first word",
      "(writing | (complete != 0) | many)", "1"),
    M("memory/litedram", "litedram", "a write is done with each of its words",
      "native.wdata_ready & w_words.o.payload.last", "native.wdata_ready"),
    M("memory/ddr3_init", "ddr3_init", "the end of the run, not its middle",
      "self.delays[k].eq(delay - (run[k] >> 1))", "self.delays[k].eq(delay)"),
    M("memory/ddr3_init", "ddr3_init", "runs go on from one bitslip to the next",
      "with m.Elif(delay == 0):", "with m.Elif(best[k] == 0):"),
    M("memory/ddr3_init", "ddr3_init", "the strobe's edges do not matter",
      "(step.kind == BURST) & ~bus.dat_r[k]", "0"),
    M("memory/ddr3_init", "ddr3_init", "the last of equal runs",
      "with m.If(run[k] > best[k]):", "with m.If((run[k] != 0) & (run[k] >= best[k])):"),
    M("memory/ddr3_init", "ddr3_init", "CKE too early", "RESET_US = 250", "RESET_US = 150"),
    M("memory/reader", "reader", "no space reserved for a burst",
      "fits.eq(used + length <= c.fifo_words)", "fits.eq(1)"),
    M("memory/reader", "reader", "a burst of the greatest length is not the last",
      "final.eq(remain <= c.burst_words)", "final.eq(remain < c.burst_words)"),
    M("memory/reader", "reader", "a flush forgets what is outstanding",
      "m.d.comb += waiting.eq(issued != received)", "m.d.comb += waiting.eq(0)"),
    M("memory/arbiter", "arbiter", "data of one client given to the other",
      "~offered & (asked == got)):", "~offered):"),
    M("memory/arbiter", "arbiter", "a busy client starves the other",
      " & ~(other & served)), take", "), take"),
    M("memory/store", "store", "flushed bytes are written",
      "strb.eq(Mux(drop, 0, (1 << c.bus_bytes) - 1))",
      "strb.eq((1 << c.bus_bytes) - 1)"),
    M("memory/store", "store", "memory's back-pressure ignored",
      "form.eq(owing & (drop | some) & beats.i.ready)", "form.eq(owing & (drop | some))"),
    M("weights/block_unit", "decoder", "a block's scale is kept for the next",
      "pairs.o.ready.eq(issue & (in_block == each - 1))", "pairs.o.ready.eq(issue & last)"),
    M("weights/block_unit", "decoder", "the last block of a tile leaves the rest of its word",
      "with m.If(at_end | ending):", "with m.If(at_end):"),
    M("weights/block_unit", "decoder", "a minimum where there is none",
      "low.eq(Mux(minimum_0, pair[16:], 0))", "low.eq(pair[16:])"),
    M("weights/unpacker", "unpacker", "a damaged preamble is taken",
      "good = self.sound & known", "good = known"),
    M("weights/unpacker", "unpacker", "a segment begins where the lanes were in the last one",
      "go.eq(step), start.eq(begin)", "go.eq(step), start.eq(0)"),
    M("weights/decoder", "decoder", "shift of a row scale a bit short",
      "scales[i].shift.eq(form[16:])", "scales[i].shift.eq(form[16:21])"),
    M("weights/decoder", "decoder", "a chunk of short headers gives its first half twice",
      "chunk[4 * W:].word_select(i, 16)", "chunk.word_select(i, 16)"),
    M("weights/decoder", "decoder", "the last chunk of short headers always gives two items",
      "short & ~again & (header_left != 2)", "short & ~again"),
    M("weights/decoder", "decoder", "units do not wait for each other",
      "(selected == k) & ~others[k]),", "(selected == k)),"),
    M("weights/decoder", "decoder", "a tile begins without a half for it",
      "tag_valid & some_half & (done", "tag_valid & (done"),
    M("weights/tile_buffer", "tile_buffer", "a half is given back when it is full",
      "self.i.freed.eq(read.release)", "self.i.freed.eq(last << back)"),

    # Control.
    M("memory/sdram", "sdram", "a READ in front of its row",
      "waiting & ~go & step_soon &", "waiting & ~go &"),
    M("memory/sdram", "sdram", "a word is written while one that was read is on the bus",
      "(~following.write | turn_soon)", "1"),
    M("memory/sdram", "sdram", "rows are opened though a refresh is due",
      "may = ~(running & ending) & ~held", "may = ~(running & ending)"),
    M("memory/sdram", "sdram", "a row is noted for another bank",
      "rows[following.bank].eq(following.row)", "rows[0].eq(following.row)"),
    M("compute/issue", "tiling_engine", "the head begins a block early",
      "first_is_last.eq(blocks_left == 1)", "first_is_last.eq(blocks_left == 2)"),
    M("compute/softmax", "softmax", "another block's maximum counts",
      "Mux(exceeds & delay(m, resumes, 1, name=\"resumes\"),", "Mux(exceeds,"),
    M("control/fetch", "fetch", "other tiles move the pointer of the weight stream",
      "streamed.eq(streaming)", "streamed.eq(1)"),
    M("control/fetch", "fetch", "keys read before they are stored",
      "stores_done = ahead >= 0", "stores_done = ahead >= -99"),
    M("control/fetch", "fetch", "the last tile of keys is a full one",
      "more.eq(keys_after > 0)", "more.eq(1)"),
    M("control/fetch", "fetch", "END for inner passes ends none",
      "skipped.eq(is_end & goes_on)", "skipped.eq(is_end & word.last)"),
    M("control/sampler", "sampler", "a later equal logit wins",
      "Mux(bit, high, low) >= Cat(", "Mux(bit, high, low) > Cat("),
    M("control/sampler", "sampler", "an entry that leaves its cell goes below its equals",
      "self.o_top.eq(top | stays)", "self.o_top.eq(0)"),
    M("control/sampler", "sampler", "a cell's last entry survives a start",
      "wait.eq(_Cell.MAX + 2)", "wait.eq(_Cell.MAX - 3)"),
    M("control/sampler", "sampler", "scaled logit rounded down",
      "rounded.eq((shifted[2] + 1) >> 1)", "rounded.eq(shifted[2] >> 1)"),
    M("control/sampler", "sampler", "scaled logit wraps beyond 34 bits",
      "over.eq(beyond[2] | ", "over.eq("),
    M("control/sampler", "sampler", "top-k takes one more",
      "(coming <= run.top_k)", "(coming <= run.top_k + 1)"),
    M("control/sequencer", "sequencer", "score memory never quite filled",
      "area <= config.score_depth", "area < config.score_depth"),
    M("control/sequencer", "sequencer", "stop ids beyond the count are heeded",
      "(run.stop_ids[i] == token) & (i < run.stop_count)", "run.stop_ids[i] == token"),
    M("control/sequencer", "sequencer", "one token too many",
      "counted.eq(generated == run.max_new)", "counted.eq(generated > run.max_new)"),
    M("link/framer", "framer", "damaged frames accepted",
      "good.eq(ended & crc.match_detected)", "good.eq(ended)"),
    M("link/framer", "framer", "a full queue of frames overwritten",
      "room.eq(level != self.slots - 1)", "room.eq(1)"),
]


def copy_tree(to: Path) -> None:
    """What the tests need, and the part of the build that no mutant changes."""
    for name in FOLDERS:
        shutil.copytree(ROOT / name, to / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", to)
    for built in (ROOT / "build" / "sim").glob("verilated-*"):
        shutil.copytree(built, to / "build" / "sim" / built.name)


def run_tests(tree: Path, tests: list[str], seed: str, limit_s: float) -> tuple[str, str]:
    """("passed", "failed", "hung" or "void", last lines of the output)."""
    path = os.pathsep.join(str(tree / name) for name in FOLDERS)
    # PYTHONPATH comes before the editable install, so the copy is what gets imported.
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests], cwd=tree,
        env=os.environ | {"PYTHONPATH": path, "SEED": seed, "SIM": "verilator",
                          "PYTHONDONTWRITEBYTECODE": "1"},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        errors="replace", start_new_session=True)
    try:
        output, _ = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)      # the simulator as well
        process.communicate()
        return "hung", f"no end after {limit_s:.0f} s"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    outcome = {0: "passed", 1: "failed"}.get(process.returncode, "void")
    return outcome, "\n".join(output.splitlines()[-12:])


def main() -> int:
    """Status 0 if every mutant was caught."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("-k", metavar="TEXT", help="only mutants whose file or description has it")
    parser.add_argument("--list", action="store_true", help="only list them")
    parser.add_argument("--seed", default="1", help="seed of the tests (default 1)")
    parser.add_argument("--limit", type=float, default=900, metavar="S",
                        help="longest run of one mutant's tests, seconds (default 900)")
    parser.add_argument("--json", metavar="FILE", help="results as one object; - for stdout")
    args = parser.parse_args()
    chosen = [m for m in MUTANTS if not args.k or args.k in m.file or args.k in m.what]
    wrong = [m for m in chosen if (ROOT / m.file).read_text().count(m.old) != 1]
    for m in wrong:
        print(f"{m.file}: {m.what}: {m.old!r} must occur once: the block has changed, so must "
              "the mutant", file=sys.stderr)
    if wrong or not chosen:
        return 2
    if args.list:
        for m in chosen:
            print(f"{m.file}: {m.what}")
        return 0

    say = sys.stderr if args.json == "-" else sys.stdout
    results: list[dict] = []
    with tempfile.TemporaryDirectory(prefix="meadowlark-mutate-") as folder:
        tree = Path(folder)
        copy_tree(tree)
        tests = sorted({m.test for m in chosen})
        print(f"{len(tests)} test files as they are: ", end="", file=say, flush=True)
        outcome, tail = run_tests(tree, tests, args.seed, args.limit * len(tests))
        print(outcome, file=say, flush=True)
        if outcome != "passed":
            print(tail, file=say)
            return 2
        for number, m in enumerate(chosen, 1):
            begun = time.monotonic()
            source = tree / m.file
            text = source.read_text()
            source.write_text(text.replace(m.old, m.new))
            try:
                outcome, tail = run_tests(tree, [m.test], args.seed, args.limit)
            finally:
                source.write_text(text)
            verdict = {"passed": "SURVIVED", "void": "VOID"}.get(outcome, "caught")
            results.append({"file": m.file, "what": m.what, "verdict": verdict.lower()})
            print(f"{number:3d}/{len(chosen)}  {verdict:8s}  {time.monotonic() - begun:5.0f} s  "
                  f"{m.file.removeprefix(str(HDL) + '/')}: {m.what}", file=say, flush=True)
            if verdict == "VOID":
                print(tail, file=say)
    count = {verdict: sum(r["verdict"] == verdict for r in results)
             for verdict in ("caught", "survived", "void")}
    print(f"{count['caught']} of {len(results)} mutants caught, {count['survived']} survived, "
          f"{count['void']} void", file=say)
    if args.json:
        text = json.dumps(count | {"mutants": results}, indent=2) + "\n"
        if args.json == "-":
            sys.stdout.write(text)
        else:
            Path(args.json).write_text(text)
    return 0 if count["caught"] == len(results) else 1


if __name__ == "__main__":
    sys.exit(main())
