// An SDRAM controller with its pad registers, and what is between it and a core's clock, alone with a
// strict SDRAM: a long read in bursts.
#include <cstdint>
#include <cstdlib>

#include "Vcore.h"
#include "clocks.hpp"
#include "sdram.hpp"
#include "verilated.h"

extern "C" {

struct Found {                                  // mirrors meadowlark.sim.stream._Found
    uint64_t words, wrong, refreshes, violated;
    double ns;
    char violation[200];
};

// What is at a word's address: every address another value than its neighbours, rows and banks.
uint16_t content(uint64_t address) { return uint16_t((address * 0x9E3779B1u) >> 15); }

// Reads `words` words of the core from `first` on; ns are those from the first word to the last, and
// the core's cycle that this one takes.
void stream_run(const Chip* chip, uint64_t first, uint64_t words, uint64_t burst, Found* found) {
    VerilatedContext context;
    context.commandArgs(0, (const char**)nullptr);
    Vcore top{&context, "core"};
    uint16_t* memory = (uint16_t*)std::malloc(chip->size_bytes);
    for (uint64_t k = 0; k < chip->size_bytes / 2; k++) memory[k] = content(k);
    Counters c{};
    Sdram sdram(*chip, (uint8_t*)memory, c);
    *found = Found{};
    uint64_t asked = 0, patience = 0;
    double begun = 0;
    Bus bus(*chip);
    Clocks clocks(*chip);
    top.clk = 0;
    top.eval();
    const int parts = BUS_BYTES / 2;
    while (found->words < words && sdram.violation.empty() && patience < 1000000) {
        top.r_cmd_valid = top.ready && asked < words;
        uint64_t n = words - asked < burst ? words - asked : burst;
        top.r_cmd_addr = first + asked;
        top.r_cmd_len = n - 1;
        clocks.core_cycle(top, [&] {
            if (top.r_cmd_valid && top.r_cmd_ready) asked += n;
            if (!top.r_data_valid) { patience++; return; }
            if (!found->words) begun = clocks.now();
            for (int k = 0; k < parts; k++)
                if (uint16_t(top.r_data >> 16 * k) != content((first + found->words) * parts + k)) {
                    found->wrong++;
                    break;
                }
            found->words++;
            found->ns = clocks.now() - begun + chip->core_period;
            patience = 0;
        }, [&] {
            int code = top.ras | top.cas << 1 | top.we << 2;        // asserted: 1
            found->refreshes += code == 3;
            top.dq_i = bus.sampled(sdram.edge(top.cke, 7 & ~code, top.ba, top.a, top.dqm,
                                              top.dq_oe ? top.dq_o : -1));
        });
    }
    found->violated = !sdram.violation.empty();
    std::snprintf(found->violation, sizeof found->violation, "%s", sdram.violation.c_str());
    std::free(memory);
}

}  // extern "C"
