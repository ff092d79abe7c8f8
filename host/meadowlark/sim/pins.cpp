// The simulated board at its pins: the chip's top as it is synthesised (only PLL and pads are
// behavioural), a strict SDR SDRAM and a UART. The same functions as harness.cpp, so that Python
// sees one board.
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "Vcore.h"
#include "clocks.hpp"
#include "queues.hpp"
#include "sdram.hpp"
#include "verilated.h"

extern "C" {

struct Sim : Queues {
    VerilatedContext ctx;
    Vcore* top = nullptr;
    Chip chip;
    uint8_t* memory;
    Counters c{};
    Sdram* sdram = nullptr;
    uint64_t now = 0;
    // UART: a bit lasts `divisor` cycles.
    uint64_t send_wait = 0, get_wait = 0;
    int send_bits = 0, get_bits = -1;
    uint32_t send_shift = 0x3FF, get_shift = 0;
    bool line = true;
    Bus bus;
    Clocks clocks;

    explicit Sim(const Chip& ch) : chip(ch), bus(ch), clocks(ch) {
        ctx.commandArgs(0, (const char**)nullptr);
        memory = (uint8_t*)std::calloc(ch.size_bytes, 1);
        reset();
    }
    ~Sim() { delete top; delete sdram; std::free(memory); }

    void reset() {
        delete top;
        delete sdram;
        c = Counters{};
        top = new Vcore{&ctx, "core"};
        sdram = new Sdram(chip, memory, c);
        top->clk = 0;
        top->uart_rx = 1;
        top->dq_i = 0;
        top->eval();
        clear();
        now = send_wait = get_wait = 0;
        send_bits = 0; get_bits = -1; line = true;
    }

    void uart() {
        if (send_wait) send_wait--;
        else if (send_bits) {
            line = send_shift & 1;
            send_shift >>= 1;
            send_bits--;
            send_wait = chip.divisor - 1;
        } else if (rx_at < rx.size()) {
            send_shift = uint32_t(rx[rx_at++]) << 1 | 0x200;
            c.rx_bytes++;
            if (rx_at == rx.size()) { rx.clear(); rx_at = 0; }
            send_bits = 9;
            line = false;
            send_shift >>= 1;
            send_wait = chip.divisor - 1;
        } else line = true;
        bool pin = top->uart_tx;
        if (get_bits < 0) {
            if (!pin) { get_bits = 0; get_wait = chip.divisor + chip.divisor / 2; get_shift = 0; }
        } else if (--get_wait == 0) {
            if (get_bits == 8) {
                if (pin) { tx.push_back(uint8_t(get_shift)); last_tx = now; c.tx_bytes++; }
                get_bits = -1;
            } else {
                get_shift |= uint32_t(pin) << get_bits++;
                get_wait = chip.divisor;
            }
        }
    }

    void cycle() {
        Vcore& t = *top;
        t.uart_rx = line;
        clocks.core_cycle(t, [&] { uart(); }, [&] {
            int code = t.ras | t.cas << 1 | t.we << 2;      // asserted: 1
            t.dq_i = bus.sampled(
                sdram->edge(t.cke, 7 & ~code, t.ba, t.a, t.dqm, t.dq_oe ? t.dq_o : -1));
        });
        c.cycles++;
        now++;
    }
};

Sim* sim_new(const Chip* chip) { return new Sim(*chip); }
void sim_free(Sim* s) { delete s; }
void sim_reset(Sim* s) { s->reset(); }
uint8_t* sim_memory(Sim* s) { return s->memory; }
void sim_push(Sim* s, const uint8_t* bytes, uint64_t n) { s->push(bytes, n); }
uint64_t sim_waiting(Sim* s) { return s->waiting(); }
uint64_t sim_pop(Sim* s, uint8_t* to, uint64_t n) { return s->pop(to, n); }
uint64_t sim_run(Sim* s, uint64_t cycles, uint64_t want, uint64_t quiet, int drain) {
    uint64_t from = s->now;
    while (s->now - from < cycles && s->sdram->violation.empty()) {
        s->cycle();
        if (want && s->waiting() >= want && s->now - s->last_tx > quiet) break;
        if (drain && s->rx.empty() && !s->send_bits) break;
    }
    return s->now - from;
}
void sim_counters(Sim* s, Counters* to) { *to = s->c; }
int sim_fault(Sim* s, uint64_t* cycle, uint64_t* addr) {
    *cycle = s->now; *addr = 0;
    return !s->sdram->violation.empty();
}
const char* sim_violation(Sim* s) { return s->sdram->violation.c_str(); }

// There is no tap at the pins.
uint64_t sim_logits(Sim*) { return 0; }
uint64_t sim_starts(Sim*) { return 0; }
void sim_take_logits(Sim*, int32_t*, uint64_t*) {}

}  // extern "C"
