// Signals of a core as a VCD file: one value a cycle, settled, just before its rising edge. A
// microsecond of the file is a cycle, counted from the start of the recording.
#pragma once
#include <cstdint>
#include <memory>

#include "Vcore.h"
#include "verilated_vcd_c.h"

class Waves {
    std::unique_ptr<VerilatedVcdC> file;
    uint64_t origin = 0, first = 0, last = 0, written = 0;
public:
    bool start(Vcore& top, const char* path, uint64_t now, uint64_t first_, uint64_t last_) {
        stop();
        file = std::make_unique<VerilatedVcdC>();
        file->set_time_unit("1us");
        file->set_time_resolution("1us");
        top.trace(file.get(), 99);
        file->open(path);
        origin = now; first = first_; last = last_; written = 0;
        return file->isOpen();
    }
    void cycle(uint64_t now) {
        if (!file || !file->isOpen() || now - origin < first) return;
        if (now - origin == last) {
            file->close();
            return;
        }
        file->dump(now - origin);
        written++;
    }
    uint64_t stop() {
        uint64_t cycles = file ? written : 0;
        file.reset();                           // closes it
        return cycles;
    }
};
