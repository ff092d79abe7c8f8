# No pins: everything goes through the processor system. No clock either: there is one, pl_clk0 of
# the processor system, and its IP constrains it to @CLOCK_MHZ@ MHz. No false paths: irq is a
# register of that clock and ends in the processor system, which synchronises it.
set_property BITSTREAM.GENERAL.COMPRESS TRUE [current_design]
