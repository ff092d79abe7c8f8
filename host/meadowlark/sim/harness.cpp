// The simulated board: clock, external memory, byte link and logits tap around one verilated core.
//
// The clock runs here, so that Python is called a few times a token and not once a cycle. All ports
// of the core are sampled after its combinational logic has settled with this cycle's inputs, just
// before the rising edge; the memory then takes one step.
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <vector>

#include "Vcore.h"
#include "queues.hpp"
#include "verilated.h"

// Port names: "a__b" in Verilog is a___05Fb in C++.
#define PORT1(a, b) a##___05F##b
#define PORT2(a, b, c) a##___05F##b##___05F##c

#if HAS_TRACE
#include "tracer.hpp"
#endif
#if HAS_WAVES
#include "waves.hpp"
#endif

namespace {

// Ports are CData, SData, IData, QData or VlWide<n>, by width.
template <class T> inline uint64_t bits(const T& v, int at, int width) {
    return (uint64_t(v) >> at) & (width >= 64 ? ~0ull : (1ull << width) - 1);
}
template <std::size_t N> inline uint64_t bits(const VlWide<N>& v, int at, int width) {
    uint64_t r = 0;
    for (int i = 0; i < width; i++)
        r |= uint64_t(v[(at + i) / 32] >> ((at + i) % 32) & 1) << i;
    return r;
}
template <class T> inline void set_bytes(T& v, const uint8_t* from, int n) {
    uint64_t x = 0;
    std::memcpy(&x, from, n);
    v = T(x);
}
template <std::size_t N> inline void set_bytes(VlWide<N>& v, const uint8_t* from, int n) {
    std::memcpy(&v[0], from, n);                // little-endian host, as Verilator's own wide words
}
template <class T> inline void get_bytes(const T& v, uint8_t* to, int n) {
    uint64_t x = uint64_t(v);
    std::memcpy(to, &x, n);
}
template <std::size_t N> inline void get_bytes(const VlWide<N>& v, uint8_t* to, int n) {
    std::memcpy(to, &v[0], n);
}

constexpr int BUS = BUS_BYTES;                  // bytes of a bus word
constexpr int LEN = LEN_BITS;                   // bits of a command's length field
constexpr int QUEUE = 4;                        // commands the memory controller holds, each way

// What a memory's bus does; mirrors meadowlark.sim.trace.STATES.
enum BusState : uint32_t { BUS_NOTHING, BUS_READ, BUS_WRITE, BUS_REFRESH, BUS_ROW, BUS_TURN,
                           BUS_CORE };

struct Command { uint64_t addr; uint32_t words; uint64_t seen; };
struct Word { uint64_t due; uint8_t data[BUS]; };
struct WriteWord { uint8_t data[BUS]; uint32_t strb; };

template <class T> class Fifo {                 // grows by doubling; no allocation when warm
    std::vector<T> v = std::vector<T>(64);
    size_t head = 0, n = 0;
public:
    size_t size() const { return n; }
    bool empty() const { return n == 0; }
    T& front() { return v[head]; }
    void pop() { head = (head + 1) & (v.size() - 1); n--; }
    void clear() { head = n = 0; }
    T& push() {
        if (n == v.size()) {
            std::vector<T> w(v.size() * 2);
            for (size_t i = 0; i < n; i++) w[i] = v[(head + i) & (v.size() - 1)];
            v.swap(w);
            head = 0;
        }
        return v[(head + n++) & (v.size() - 1)];
    }
};

}  // namespace

extern "C" {

// Times in ticks: a cycle of the core takes `core`, a word on the memory's bus `word` of them.
struct Timing {                                 // mirrors meadowlark.sim.board._Timing
    uint64_t size_bytes, page_bytes, banks, ahead_words;
    uint64_t core, word, latency, row_miss, turnaround, refresh_interval, refresh;
};

struct Sim : Queues {
    VerilatedContext ctx;
    Vcore* top = nullptr;
    Timing timing;
    uint8_t* memory;
    Counters c{};
    uint64_t now = 0;                           // core's cycle
    uint64_t slot = 0;                          // tick of the next word on the memory's bus
    // memory
    Fifo<Command> reads, writes;
    Fifo<Word> out;
    Fifo<WriteWord> in;
    std::vector<uint64_t> rows;                 // open row of each bank
    Command burst{};
    uint32_t left = 0;                          // words the burst still has to move
    bool writing = false;                       // direction of the bus
    uint64_t row_ready = 0, turn_ready = 0;     // when the next burst may start
    bool planned = false, plan_write = false;   // a burst is chosen and waits for its row
    uint64_t prev_start = 0, prev_end = 0, prev_next = ~0ull;
    uint64_t next_refresh, refresh_until = 0;
    Fifo<uint64_t> dones;
    uint64_t fault_cycle = 0, fault_addr = 0;
    bool fault = false;
    // tap
    std::vector<int32_t> logits;
    std::vector<uint64_t> starts;               // where in `logits` each head pass begins
#if HAS_TRACE
    Tracer tracer;
#endif
#if HAS_WAVES
    Waves waves;
#endif

    explicit Sim(const Timing& t) : timing(t) {
        ctx.commandArgs(0, (const char**)nullptr);
#if HAS_WAVES
        ctx.traceEverOn(true);
#endif
        memory = (uint8_t*)std::calloc(t.size_bytes, 1);    // pages appear when touched
        reset();
    }
    ~Sim() { delete top; std::free(memory); }

    void reset() {                              // everything but the memory's contents
        // The core has no reset input: a new one has its initial values.
#if HAS_WAVES
        waves.stop();                           // they were the old one's
#endif
        delete top;
        top = new Vcore{&ctx, "core"};
        top->clk = 0;
        top->PORT1(rx, valid) = 0;
        top->PORT1(tx, ready) = 0;
        top->PORT2(mem, r_cmd, ready) = 0;
        top->PORT2(mem, r_data, valid) = 0;
        top->PORT2(mem, w_cmd, ready) = 0;
        top->PORT2(mem, w_data, ready) = 0;
        top->PORT1(mem, w_done) = 0;
        top->PORT1(mem, ready) = 0;
        top->eval();
        reads.clear(); writes.clear(); out.clear(); in.clear(); dones.clear();
        rows.assign(timing.banks, ~0ull);
        left = 0; writing = planned = false;
        row_ready = turn_ready = prev_start = prev_end = refresh_until = 0;
        prev_next = ~0ull;
        next_refresh = timing.refresh_interval ? timing.refresh_interval : ~0ull;
        clear();
        logits.clear(); starts.clear();
        fault = false;
        now = slot = 0;
        c = Counters{};
    }

    uint64_t row_of(uint64_t byte) const { return byte / (timing.page_bytes * timing.banks); }
    uint64_t bank_of(uint64_t byte) const { return byte / timing.page_bytes % timing.banks; }

    // Choose the next burst and find when its row is open and the bus turned.
    void plan() {
        bool w = !writes.empty() && in.size() >= writes.front().words;
        if (!w && reads.empty()) return;
        plan_write = w;
        Command& cmd = w ? writes.front() : reads.front();
        uint64_t byte = cmd.addr * BUS, bank = bank_of(byte);
        row_ready = turn_ready = slot;
        bool follows = cmd.addr == prev_next;   // its bank was opened during the burst before
        if (!follows && rows[bank] != row_of(byte)) {
            // The bank's precharge and activation start when the command is seen, one burst ahead
            // at most; in the bank of the burst before, only after that burst.
            bool same = prev_next != ~0ull && bank == bank_of((prev_next - 1) * BUS);
            uint64_t from = same ? prev_end : prev_start;
            row_ready = (cmd.seen > from ? cmd.seen : from) + timing.row_miss;
        }
        if (w != writing) turn_ready = prev_end + timing.turnaround;
        planned = true;
    }

    // What the memory's bus does in the time of a word.
    void bus(uint64_t& counter, BusState state) {
        counter++;
#if HAS_TRACE
        tracer.memory(now, state);
#endif
    }

    // The time of one word on the memory's bus.
    void memory_step() {
        if (slot >= next_refresh && left == 0) {
            refresh_until = slot + timing.refresh;
            next_refresh += timing.refresh_interval;
        }
        if (slot < refresh_until) { bus(c.idle_refresh, BUS_REFRESH); return; }
        if (left == 0) {
            if (!planned) plan();
            if (!planned) { bus(c.idle_no_command, BUS_NOTHING); return; }
            if (slot < row_ready) { bus(c.idle_row, BUS_ROW); return; }
            if (slot < turn_ready) { bus(c.idle_turnaround, BUS_TURN); return; }
            Fifo<Command>& q = plan_write ? writes : reads;
            burst = q.front();
            q.pop();
            planned = false;
            writing = plan_write;
            left = burst.words;
            prev_start = slot;
            if ((burst.addr + burst.words) * BUS > timing.size_bytes && !fault) {
                fault = true; fault_cycle = now; fault_addr = burst.addr * BUS;
            }
            (writing ? c.write_bursts : c.read_bursts)++;
        }
        uint64_t at = burst.addr * BUS % timing.size_bytes;
        if (writing) {
            WriteWord& w = in.front();
            for (int i = 0; i < BUS; i++)
                if (w.strb >> i & 1) memory[at + i] = w.data[i];
            in.pop();
            bus(c.write_words, BUS_WRITE);
        } else {
            if (out.size() >= timing.latency / timing.word + timing.ahead_words) {
                bus(c.idle_core, BUS_CORE);
                return;
            }
            Word& w = out.push();
            w.due = slot + timing.latency;
            std::memcpy(w.data, memory + at, BUS);
            bus(c.read_words, BUS_READ);
        }
        rows[bank_of(at)] = row_of(at);
        burst.addr++;
        if (--left == 0) {
            prev_end = slot + timing.word;
            prev_next = burst.addr;
            if (writing) dones.push() = prev_end;
        }
    }

    void cycle() {
        Vcore& t = *top;
        const uint64_t tick = now * timing.core;
        // Inputs of this cycle.
        t.PORT1(mem, ready) = now >= 16;        // a memory that still starts up
        bool r_room = now >= 16 && reads.size() < QUEUE, w_room = now >= 16 && writes.size() < QUEUE;
        bool d_room = in.size() < 4 * 256;
        bool r_valid = !out.empty() && out.front().due <= tick;
        t.PORT2(mem, r_cmd, ready) = r_room;
        t.PORT2(mem, w_cmd, ready) = w_room;
        t.PORT2(mem, w_data, ready) = d_room;
        t.PORT2(mem, r_data, valid) = r_valid;
        if (r_valid) set_bytes(t.PORT2(mem, r_data, payload), out.front().data, BUS);
        bool done = !dones.empty() && dones.front() <= tick;
        t.PORT1(mem, w_done) = done;
        bool rx_valid = rx_at < rx.size();
        t.PORT1(rx, valid) = rx_valid;
        if (rx_valid) t.PORT1(rx, payload) = rx[rx_at];
        t.PORT1(tx, ready) = 1;
        t.clk = 0;
        t.eval();
        // What passes at the coming edge.
        if (done) dones.pop();
        if (r_valid && t.PORT2(mem, r_data, ready)) out.pop();
        if (r_room && t.PORT2(mem, r_cmd, valid)) {
            auto& p = t.PORT2(mem, r_cmd, payload);
            reads.push() = {bits(p, 0, 32), uint32_t(bits(p, 32, LEN)) + 1, tick};
        }
        if (w_room && t.PORT2(mem, w_cmd, valid)) {
            auto& p = t.PORT2(mem, w_cmd, payload);
            writes.push() = {bits(p, 0, 32), uint32_t(bits(p, 32, LEN)) + 1, tick};
        }
        if (d_room && t.PORT2(mem, w_data, valid)) {
            auto& p = t.PORT2(mem, w_data, payload);
            WriteWord& w = in.push();
            get_bytes(p, w.data, BUS);
            w.strb = uint32_t(bits(p, 8 * BUS, BUS));
        }
        if (rx_valid && t.PORT1(rx, ready)) {
            rx_at++; c.rx_bytes++;
            if (rx_at == rx.size()) { rx.clear(); rx_at = 0; }
        }
        if (t.PORT1(tx, valid)) { tx.push_back(t.PORT1(tx, payload)); last_tx = now; c.tx_bytes++; }
#if HAS_TAP
        if (t.PORT1(tap, valid)) {
            if (t.PORT1(tap, row) == 0) starts.push_back(logits.size());
            logits.push_back(int32_t(t.PORT1(tap, value)));
            c.logits++;
        }
#endif
#if HAS_TRACE
        tracer.cycle(t, now);
#endif
#if HAS_WAVES
        waves.cycle(now);
#endif
        for (; slot <= tick; slot += timing.word) memory_step();
        c.cycles++;
        now++;
        t.clk = 1;
        t.eval();
    }
};

Sim* sim_new(const Timing* t) { return new Sim(*t); }
void sim_free(Sim* s) { delete s; }
void sim_reset(Sim* s) { s->reset(); }
uint8_t* sim_memory(Sim* s) { return s->memory; }

void sim_push(Sim* s, const uint8_t* bytes, uint64_t n) { s->push(bytes, n); }
uint64_t sim_waiting(Sim* s) { return s->waiting(); }
uint64_t sim_pop(Sim* s, uint8_t* to, uint64_t n) { return s->pop(to, n); }

// Run until `want` bytes wait and none came for `quiet` cycles, or rx is empty (`drain`), or the
// cycles are over, or the core left its memory. Returns cycles run.
uint64_t sim_run(Sim* s, uint64_t cycles, uint64_t want, uint64_t quiet, int drain) {
    uint64_t from = s->now;
    while (s->now - from < cycles && !s->fault) {
        s->cycle();
        if (want && s->waiting() >= want && s->now - s->last_tx > quiet) break;
        if (drain && s->rx.empty()) break;
    }
    return s->now - from;
}

void sim_counters(Sim* s, Counters* to) { *to = s->c; }
int sim_fault(Sim* s, uint64_t* cycle, uint64_t* addr) {
    *cycle = s->fault_cycle; *addr = s->fault_addr;
    return s->fault;
}

uint64_t sim_logits(Sim* s) { return s->logits.size(); }
uint64_t sim_starts(Sim* s) { return s->starts.size(); }
void sim_take_logits(Sim* s, int32_t* values, uint64_t* starts) {
    if (!s->logits.empty()) std::memcpy(values, s->logits.data(), s->logits.size() * 4);
    if (!s->starts.empty()) std::memcpy(starts, s->starts.data(), s->starts.size() * 8);
    s->logits.clear();
    s->starts.clear();
}

#if HAS_TRACE
void sim_trace(Sim* s, uint64_t passes, uint32_t words_per_chunk) {
    s->tracer.start(passes, words_per_chunk);
}
uint64_t sim_traced(Sim* s) { return s->tracer.records.size(); }
void sim_take_trace(Sim* s, Record* to) {
    std::memcpy((void*)to, s->tracer.records.data(), s->tracer.records.size() * sizeof(Record));
    s->tracer.records.clear();
}
#endif

#if HAS_WAVES
// Write cycles first..last-1 from now on; 0: the file cannot be written.
int sim_waves(Sim* s, const char* path, uint64_t first, uint64_t last) {
    return s->waves.start(*s->top, path, s->now, first, last);
}
uint64_t sim_waved(Sim* s) { return s->waves.stop(); }      // ends; cycles written
#endif

}  // extern "C"
