# Bitstream of Meadowlark for @BOARD@: vivado -mode batch -source build.tcl
# Written for Vivado 2023.2 and not run; IP is named without versions. Results beside this file:
# @BOARD@.bit, @BOARD@.hwh (for PYNQ), @BOARD@.xsa, timing.rpt, utilisation.rpt.
set here [file dirname [file normalize [info script]]]

if {[llength [get_board_parts -quiet @BOARD_PART@]] == 0} {
    error "this Vivado does not know the board @BOARD_PART@: install its board files (Tools, Vivado\
        Store), or put the version that it has in build.tcl"
}
create_project -force meadowlark $here/vivado -part @PART@
set_property board_part @BOARD_PART@ [current_project]
add_files -norecurse $here/meadowlark.v
add_files -norecurse -fileset constrs_1 $here/meadowlark.xdc
update_compile_order -fileset sources_1

source $here/block_design.tcl
set design [get_files system.bd]
add_files -norecurse [make_wrapper -files $design -top]
set_property top system_wrapper [current_fileset]
update_compile_order -fileset sources_1

launch_runs impl_1 -to_step write_bitstream -jobs 4
wait_on_run impl_1
if {[get_property PROGRESS [get_runs impl_1]] != "100%"} {
    error "no bitstream: [get_property STATUS [get_runs impl_1]]; see vivado/meadowlark.runs"
}
open_run impl_1
report_timing_summary -file $here/timing.rpt
report_utilization -hierarchical -file $here/utilisation.rpt
file copy -force $here/vivado/meadowlark.runs/impl_1/system_wrapper.bit $here/@BOARD@.bit
file copy -force $here/vivado/meadowlark.gen/sources_1/bd/system/hw_handoff/system.hwh \
    $here/@BOARD@.hwh
write_hw_platform -fixed -include_bit -force $here/@BOARD@.xsa

set slack [get_property STATS.WNS [get_runs impl_1]]
puts "slack at @CLOCK_MHZ@ MHz: $slack ns"
if {$slack < 0} {
    error "timing is missed at @CLOCK_MHZ@ MHz: the bitstream is there, but do not trust it; lower\
        clock_mhz in the board's file and write the package again"
}
