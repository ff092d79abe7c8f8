// What harness.cpp and pins.cpp share: counters, and the byte queues between Python and the link.
#pragma once
#include <cstdint>
#include <cstring>
#include <vector>

extern "C" struct Counters {                    // mirrors meadowlark.sim.board.COUNTERS
    uint64_t cycles, read_words, write_words, read_bursts, write_bursts;
    uint64_t idle_no_command, idle_row, idle_turnaround, idle_refresh, idle_core;
    uint64_t rx_bytes, tx_bytes, logits;
};

// Bytes in both directions.
struct Queues {
    std::vector<uint8_t> rx, tx;
    size_t rx_at = 0, tx_at = 0;
    uint64_t last_tx = 0;

    void clear() { rx.clear(); tx.clear(); rx_at = tx_at = 0; last_tx = 0; }
    void push(const uint8_t* bytes, uint64_t n) { rx.insert(rx.end(), bytes, bytes + n); }
    uint64_t waiting() const { return tx.size() - tx_at; }
    uint64_t pop(uint8_t* to, uint64_t n) {
        if (n > waiting()) n = waiting();
        if (n) std::memcpy(to, tx.data() + tx_at, n);
        tx_at += n;
        if (tx_at == tx.size()) { tx.clear(); tx_at = 0; }
        return n;
    }
};
