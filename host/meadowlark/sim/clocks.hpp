// The clocks of a chip and its memory: one for both, or two that know nothing of each other.
#pragma once
#include <cmath>
#include <cstdint>

#include "Vcore.h"
#include "sdram.hpp"

namespace {

// Of all edges the next one, one after the other. `core` and `memory` are called with the chip
// settled, right before their edge; both before the same one where there is one clock.
class Clocks {
public:
    explicit Clocks(const Chip& p)
        : core_fs(fs(p.core_period)), memory_fs(fs(p.period)), next_memory(fs(p.offset)) {}

    template <class Core, class Memory> void core_cycle(Vcore& top, Core core, Memory memory) {
#if MEMORY_CLOCK
        for (; next_memory <= next_core; next_memory += memory_fs) {
            top.clk_sdram = 0;
            top.eval();
            memory();
            top.clk_sdram = 1;
            top.eval();
        }
        top.clk = 0;
        top.eval();
        core();
#else
        top.clk = 0;
        top.eval();
        core();
        memory();
#endif
        top.clk = 1;
        top.eval();
        next_core += core_fs;
    }
    double now() const { return next_core * 1e-6; }     // ns, of the core's next edge

private:
    static uint64_t fs(double ns) { return uint64_t(std::llround(ns * 1e6)); }
    const uint64_t core_fs, memory_fs;
    uint64_t next_core = 0, next_memory;
};

}  // namespace
