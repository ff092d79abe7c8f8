// What the blocks of a core did, as slices of time: from its port `probe` and the memory around it.
// Only what begins and ends is recorded, and of each stretch how much of it counted.
#pragma once
#include <cstdint>
#include <deque>
#include <vector>

struct Record {                                 // mirrors meadowlark.sim.trace.RECORD
    uint64_t begin, end, count;                 // cycles begin..end-1
    uint32_t track, state, args[4];
};

enum Track : uint32_t {                         // mirrors meadowlark.sim.trace.Track; states: STATES
    SEQUENCER, TOKEN, FETCH, READER, MEMORY, DECODER, HALF0, HALF1, ISSUE, WAIT, ARRAY, VECTOR,
    STORE, SAMPLER, WINDOW
};

constexpr uint32_t DONE = 1u << 31;             // in args[3] of a pass and of an instruction

// Stretches of one state. Another one ends it, and so does nothing for more than `gap` cycles.
class Lane {
    std::vector<Record>& out;
    const uint64_t gap;
    Record r{};
    bool open = false;
    uint64_t last = 0;
public:
    Lane(std::vector<Record>& out, uint32_t track, uint64_t gap) : out(out), gap(gap) {
        r.track = track;
    }
    // This cycle's state; it counts n, and `also` in args[1]. Another arg is another stretch.
    void see(uint64_t now, uint32_t state, uint64_t n = 1, uint32_t arg = 0, uint32_t also = 0) {
        if (open && (state ? state != r.state || arg != r.args[0] : now - last > gap)) close();
        if (!state) return;
        if (!open) {
            open = true;
            r.begin = now; r.count = 0; r.state = state; r.args[0] = arg; r.args[1] = 0;
        }
        last = now;
        r.count += n;
        r.args[1] += also;
    }
    void args(uint32_t b, uint32_t c, uint32_t d) { r.args[1] = b; r.args[2] = c; r.args[3] = d; }
    void done() { r.args[3] |= DONE; }          // it has come to its end, not been given up
    void close() {
        if (!open) return;
        open = false;
        r.end = last + 1;
        out.push_back(r);
    }
};

class Tracer {
public:
    std::vector<Record> records;
private:
    static constexpr uint64_t NEAR = 32;        // cycles that a stretch may be interrupted
    static constexpr uint64_t WINDOW_CYCLES = 1024;     // of the counters

    uint64_t most = 0, passes = 0;              // to record, recorded
    uint32_t words_per_chunk = 1;
    bool on = false, running = false;

    Lane sequencer{records, SEQUENCER, 0}, memory_{records, MEMORY, NEAR},
        decoder{records, DECODER, NEAR}, issue{records, ISSUE, 0}, wait{records, WAIT, NEAR},
        array{records, ARRAY, NEAR}, vector{records, VECTOR, NEAR}, store{records, STORE, NEAR},
        sampler{records, SAMPLER, NEAR};
    Lane halves[2] = {{records, HALF0, 0}, {records, HALF1, 0}};

    enum Phase : uint32_t { NONE, PLAN, PASS, SAMPLE, LINK } phase = PLAN;
    uint32_t pass_pc = 0;
    bool taken = false, executing = false, normalising = false;
    uint32_t pc = 0, serial = 0;                // instructions of the pass
    // Tiles, in order from Fetch to the array: by their number in the pass.
    std::deque<uint32_t> asked;                 // words of each
    uint32_t fetched = 0, arrived = 0, filled = 0, words_left = 0, words = 0;
    uint64_t arriving = 0, last_item = 0;
    bool back = false, front = false, filling[2] = {};
    uint32_t tile[2] = {};
    uint64_t window = 0;
    uint32_t read = 0, written = 0;
    int64_t level = 0;                          // bus words in the run-ahead FIFO

    void instant(uint64_t now, uint32_t track, uint32_t state, uint64_t count, uint32_t a = 0,
                 uint32_t b = 0, uint32_t c = 0) {
        records.push_back({now, now + 1, count, track, state, {a, b, c, 0}});
    }
    void count_window(uint64_t now) {
        records.push_back({window, now, uint64_t(level), WINDOW, 0, {read, written, 0, 0}});
        window = now;
        read = written = 0;
    }
    void begin_pass() {
        asked.clear();
        fetched = arrived = filled = words_left = serial = 0;
    }
    void empty(uint64_t now) {                  // as a flush leaves the core
        begin_pass();
        phase = PLAN;
        taken = executing = normalising = back = front = filling[0] = filling[1] = false;
        level = 0;
        last_item = now;
    }
    void finish(uint64_t now) {
        for (Lane* lane : {&sequencer, &memory_, &decoder, &wait, &array, &issue, &vector, &store,
                           &sampler, &halves[0], &halves[1]})
            lane->close();
        if (now != window) count_window(now);
        running = false;
    }

    template <class Top> void tiles(const Top& t, uint64_t now) {
        if (t.PORT1(probe, job)) {
            asked.push_back(t.PORT1(probe, job_chunks) * words_per_chunk);
            instant(now, FETCH, 1, 1, fetched++, t.PORT1(probe, job_addr),
                    t.PORT1(probe, job_chunks));
        }
        if (t.PORT1(probe, bus_read)) {
            read++; level++;
            if (!words_left && !asked.empty()) {
                words = words_left = asked.front();
                asked.pop_front();
                arriving = now;
            }
            if (words_left && --words_left == 0)
                records.push_back({arriving, now + 1, words, READER, 1, {arrived++, 0, 0, 0}});
        }
        if (t.PORT1(probe, chunk_taken)) level -= words_per_chunk;
        written += t.PORT1(probe, bus_write);
        bool item = t.PORT1(probe, item);
        if (item) {
            last_item = now;
            filling[back] = true;
            tile[back] = filled;
        }
        uint32_t idle = now - last_item <= NEAR ? 0 : t.PORT1(probe, chunk) ? 3 : 2;
        decoder.see(now, item ? 1 : idle);
        for (int k = 0; k < 2; k++) {
            bool available = t.PORT1(probe, available) >> k & 1;
            if (available) filling[k] = false;
            uint32_t state = available ? (k == front ? 3 : 2) : filling[k];
            halves[k].see(now, state, 1, tile[k]);
        }
        if (t.PORT1(probe, release) >> front & 1) front = !front;
        if (item && t.PORT1(probe, item_last)) { back = !back; filled++; }
    }

    template <class Top> void engine(const Top& t, uint64_t now) {
        if (taken) {
            executing = true;
            pc = t.PORT1(probe, pc);
            serial++;
        }
        taken = t.PORT1(probe, instruction);
        issue.see(now, executing, 1, serial);
        issue.args(pc, 0, 0);
        bool starved = t.PORT1(probe, wait_memory);     // comes and goes from chunk to chunk
        wait.see(now, starved || t.PORT1(probe, wait_decoder) ? 1 : t.PORT1(probe, wait_store) ? 2
                 : t.PORT1(probe, wait_vector) ? 3 : 0, 1, 0, starved);
        array.see(now, t.PORT1(probe, array_active));
        if (t.PORT1(probe, retired)) {          // slices of units lie within their instruction's
            wait.close();
            array.close();
            issue.done();
            issue.close();
            executing = false;
        }
        normalising |= t.PORT1(probe, norm_start);
        vector.see(now, normalising ? 2 : t.PORT1(probe, vector_busy));
        normalising &= !t.PORT1(probe, norm_done);
        store.see(now, !t.PORT1(probe, store_idle), t.PORT1(probe, bus_write));
        sampler.see(now, phase == SAMPLE ? 2 : t.PORT1(probe, logit));
    }

public:
    // Record the passes to come, at most so many; 0 stops.
    void start(uint64_t passes_, uint32_t words_per_chunk_) {
        records.clear();
        most = passes_;
        passes = 0;
        words_per_chunk = words_per_chunk_;
        on = most != 0;
        running = false;
    }

    // The core's ports as they are before an edge.
    template <class Top> void cycle(const Top& t, uint64_t now) {
        if (!on) return;
        if (!t.PORT1(probe, busy)) {
            if (running) finish(now);
            return;
        }
        if (!running) {
            running = true;
            window = now;
            read = written = 0;
            empty(now);
        }
        if (t.PORT1(probe, flush)) empty(now);
        if (t.PORT1(probe, pass_start)) {
            if (passes++ == most) {
                finish(now);
                on = false;
                return;
            }
            begin_pass();
            phase = PASS;
        }
        if (t.PORT1(probe, pass_done)) {
            sequencer.done();
            phase = PLAN;
        }
        if (t.PORT1(probe, sample_finish)) phase = SAMPLE;
        bool stall = t.PORT1(probe, event) && !t.PORT1(probe, event_taken);
        sequencer.see(now, stall ? uint32_t(LINK) : uint32_t(phase), 1,
                      phase == PASS ? t.PORT1(probe, pass_pc) : 0);
        sequencer.args(t.PORT1(probe, pass_pos0), t.PORT1(probe, pass_n),
                       t.PORT1(probe, pass_ctx) | t.PORT1(probe, pass_final) << 16);
        engine(t, now);
        tiles(t, now);
        if (t.PORT1(probe, sample_done)) phase = PLAN;
        if (t.PORT1(probe, event_taken))
            instant(now, TOKEN, 1 + t.PORT1(probe, event_reason), 1, t.PORT1(probe, event_token));
        if (now + 1 - window == WINDOW_CYCLES) count_window(now + 1);
    }

    // The memory's bus in the time of a word.
    void memory(uint64_t now, uint32_t state) {
        if (running) memory_.see(now, state);
    }
};
