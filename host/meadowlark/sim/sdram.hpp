// A strict SDR SDRAM: datasheet times in nanoseconds, every command checked, nothing forgiven. It is
// sim_tests/sdram_model.py in C++.
#pragma once
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <deque>
#include <string>
#include <vector>

#include "queues.hpp"

extern "C" struct Chip {                                   // mirrors meadowlark.sim.pins._Chip
    uint64_t size_bytes, row_bits, col_bits, bank_bits, data_bits, mrd_cycles, refreshes, divisor;
    double core_period, offset;                 // of the core's clock; the memory's first edge
    double period, rcd, rp, ras, rc, rrd, rfc, wr, refresh_ms, init_us;
    double access, hold, round_trip, phase;
    double clock_ns[4];                         // shortest period by CAS latency, 0: not allowed
};

namespace {

enum { MODE = 0, WRITE = 1, PRECHARGE = 2, STOP = 3, REFRESH = 4, READ = 5, ACTIVATE = 6, NOP = 7 };
const char* const NAMES[] = {"MODE", "WRITE", "PRECHARGE", "STOP", "REFRESH", "READ", "ACTIVATE",
                             "NOP"};

class Sdram {
public:
    Sdram(const Chip& chip, uint8_t* memory, Counters& c) : p(chip), memory(memory), c(c) {}
    std::string violation;

    // What the chip does at an edge; dq: what the controller drives, -1 if nothing. Returns what
    // the chip drives until the next edge samples it, or -1.
    int edge(bool cke, int code, int ba, int a, int dqm, int dq) {
        now = cycle * p.period;
        if (!cke && cycle > 2) fail("CKE is low");
        if (!cas && (code == READ || code == WRITE || code == ACTIVATE || code == STOP))
            fail("%s before the mode register is set", NAMES[code]);
        if (code != NOP) {
            if (now < p.init_us * 1000) fail("%s during power-up", NAMES[code]);
            since(refreshed, p.rfc, code, "REFRESH");
            since(mode_at, p.mrd_cycles * p.period, code, "MODE");
        }
        switch (code) {
        case READ: case WRITE:
            if (open[ba] < 0) fail("%s in bank %d, which has no open row", NAMES[code], ba);
            if (a >> p.col_bits) fail("%s of column %d, beyond the row", NAMES[code], a);
            since(activated[ba], p.rcd, code, "ACTIVATE");
            burst = true; writing = code == WRITE; bank = ba; col = a;
            (writing ? c.write_bursts : c.read_bursts)++;
            break;
        case STOP:
            if (!burst) fail("STOP without a burst");
            burst = false;
            break;
        case ACTIVATE:
            if (open[ba] >= 0) fail("ACTIVATE in bank %d, which has an open row", ba);
            since(precharged[ba], p.rp, code, "PRECHARGE");
            since(activated[ba], p.rc, code, "ACTIVATE of the bank");
            for (double t : activated) since(t, p.rrd, code, "ACTIVATE");
            open[ba] = a; activated[ba] = now;
            break;
        case PRECHARGE:
            for (int b = 0; b < 1 << p.bank_bits; b++) {
                if (!(a >> 10 & 1) && b != ba) continue;
                if (burst && bank == b) fail("PRECHARGE of bank %d under its burst", b);
                if (open[b] < 0) continue;
                since(activated[b], p.ras, code, "ACTIVATE");
                if (now - activated[b] > 120e3) fail("the row of bank %d was open too long", b);
                since(written[b], p.wr, code, "the last word");
                open[b] = -1; precharged[b] = now;
            }
            break;
        case REFRESH:
            for (int b = 0; b < 1 << p.bank_bits; b++) {
                if (open[b] >= 0) fail("REFRESH with an open row");
                since(precharged[b], p.rp, code, "PRECHARGE");
            }
            refreshed = now;
            if (!cas) power_up++;
            times.push_back(now);
            // Each row is refreshed by every refreshes-th command.
            if (times.size() > p.refreshes) {
                if (now - times.front() > p.refresh_ms * 1e6) fail("a row was refreshed too late");
                times.pop_front();
            }
            break;
        case MODE:
            if (burst || power_up < 2 || ba || (a & 15) != 7 || a >> 7 || !p.clock_ns[a >> 4 & 3])
                fail("mode %#x at a wrong time, or not a full page", a);
            cas = a >> 4 & 7;
            if (p.period < p.clock_ns[cas & 3] - 1e-3) fail("CAS latency %d is too small", cas);
            mode_at = now;
            break;
        default: break;
        }
        if (burst) word(dqm, dq);
        else {
            if (dq >= 0) fail("data is driven and no burst is under way");
            (now - refreshed < p.rfc ? c.idle_refresh : c.idle_no_command)++;
        }
        int driven = -1;
        Word& w = output[(cycle + 1) & 15];
        if (w.due == cycle + 1) {
            if (last_mask) fail("the word asked for in cycle %llu is masked",
                                (unsigned long long)(w.due - cas));
            driven = w.value;
            last_out = cycle + 1;
        }
        last_mask = dqm;
        cycle++;
        return driven;
    }

private:
    struct Word { uint64_t due = 0; int value = 0; };
    const Chip p;
    uint8_t* const memory;
    Counters& c;
    uint64_t cycle = 0, last_out = 0;
    double now = 0, refreshed = -1e9, mode_at = -1e9;
    std::vector<long> open = std::vector<long>(4, -1);
    std::vector<double> activated = std::vector<double>(4, -1e9), precharged = activated,
                        written = activated;
    std::deque<double> times;
    int cas = 0, power_up = 0, bank = 0, col = 0, last_mask = 0;
    bool burst = false, writing = false;
    Word output[16];

    void fail(const char* form, ...) {
        if (!violation.empty()) return;
        char text[200];
        va_list list;
        va_start(list, form);
        std::vsnprintf(text, sizeof text, form, list);
        va_end(list);
        violation = "cycle " + std::to_string(cycle) + ": " + text;
    }
    void since(double when, double least, int code, const char* what) {
        if (now - when < least - 1e-6)
            fail("%s after %s: %.1f ns, %g ns are needed", NAMES[code], what, now - when, least);
    }
    void word(int dqm, int dq) {
        uint64_t at = ((uint64_t(open[bank]) << p.bank_bits | bank) << p.col_bits | col) * 2;
        col = (col + 1) & ((1 << p.col_bits) - 1);
        if (!writing) {
            if (dq >= 0) fail("data is driven while a burst is read");
            output[(cycle + cas) & 15] = {cycle + cas, memory[at] | memory[at + 1] << 8};
            c.read_words++;
            return;
        }
        if (dq < 0) { fail("a word to be written is not driven"); return; }
        bool pending = last_out + 1 >= cycle && last_out;
        for (const Word& w : output) pending |= w.due > cycle;
        if (pending) fail("data is driven while the chip drives, or in the cycle after");
        if (!(dqm & 1)) memory[at] = uint8_t(dq);
        if (!(dqm & 2)) memory[at + 1] = uint8_t(dq >> 8);
        written[bank] = now;
        c.write_words++;
    }
};

// The way back, in nanoseconds. The chip's clock is late by `phase` of a period, and by as much as
// the commands are; what it drives stands on the bus from tAC after its edge to tOH after the next
// one, and reaches the pad's register later by what is left of the round trip. Between two words,
// noise.
class Bus {
public:
    explicit Bus(const Chip& p) {
        for (int k = 1; k < 16; k++)            // so many edges of the controller after the chip's
            if ((k - p.phase) * p.period >= p.access + p.round_trip - 1e-6
                && (k - 1 - p.phase) * p.period <= p.hold + p.round_trip + 1e-6) behind = k;
    }
    // What the controller's next edge finds, once the chip has seen the edge before it.
    uint16_t sampled(int driven) {
        answers[cycle & 15] = driven;
        int found = behind ? answers[(cycle + 1 - behind) & 15] : -1;
        cycle++;
        noise = noise * 1664525 + 1013904223;
        return found < 0 ? noise >> 16 : found;
    }

private:
    int behind = 0;                             // 0: at no edge is there a word
    uint64_t cycle = 0;
    int answers[16] = {-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1};
    uint32_t noise = 0x2545F491;
};

}  // namespace
