# The block design: processor system, reset, two SmartConnects, Meadowlark. Sourced by build.tcl.
#
#   processor M_AXI_HPM0_FPD --> SmartConnect --> meadowlark/s_axi    (registers)
#   meadowlark/m_axi --> SmartConnect --> S_AXI_HP0_FPD, @BUS_BITS@ bits    (DDR of the processor)
#   meadowlark/irq --> pl_ps_irq0         pl_clk0, @CLOCK_MHZ@ MHz: all of it
create_bd_design system

# Vivado's names inside the processor system: GP0 is HPM0_FPD as a manager, GP2 is HP0_FPD as a
# subordinate.
set ps [create_bd_cell -type ip -vlnv xilinx.com:ip:zynq_ultra_ps_e zynq]
apply_bd_automation -rule xilinx.com:bd_rule:zynq_ultra_ps_e \
    -config {apply_board_preset "1"} $ps
set_property -dict [list \
    CONFIG.PSU__FPGA_PL0_ENABLE {1} \
    CONFIG.PSU__CRL_APB__PL0_REF_CTRL__FREQMHZ {@CLOCK_MHZ@} \
    CONFIG.PSU__USE__M_AXI_GP0 {1} \
    CONFIG.PSU__MAXIGP0__DATA_WIDTH {32} \
    CONFIG.PSU__USE__M_AXI_GP1 {0} \
    CONFIG.PSU__USE__M_AXI_GP2 {0} \
    CONFIG.PSU__USE__S_AXI_GP2 {1} \
    CONFIG.PSU__SAXIGP2__DATA_WIDTH {@BUS_BITS@} \
    CONFIG.PSU__USE__IRQ0 {1} \
] $ps

create_bd_cell -type module -reference meadowlark meadowlark
create_bd_cell -type ip -vlnv xilinx.com:ip:proc_sys_reset reset
foreach name {to_registers to_memory} {
    create_bd_cell -type ip -vlnv xilinx.com:ip:smartconnect $name
    set_property -dict [list CONFIG.NUM_SI {1} CONFIG.NUM_MI {1} CONFIG.NUM_CLKS {1}] \
        [get_bd_cells $name]
}

connect_bd_net [get_bd_pins zynq/pl_clk0] \
    [get_bd_pins zynq/maxihpm0_fpd_aclk] [get_bd_pins zynq/saxihp0_fpd_aclk] \
    [get_bd_pins reset/slowest_sync_clk] [get_bd_pins to_registers/aclk] \
    [get_bd_pins to_memory/aclk] [get_bd_pins meadowlark/aclk]
connect_bd_net [get_bd_pins zynq/pl_resetn0] [get_bd_pins reset/ext_reset_in]
connect_bd_net [get_bd_pins reset/interconnect_aresetn] \
    [get_bd_pins to_registers/aresetn] [get_bd_pins to_memory/aresetn]
connect_bd_net [get_bd_pins reset/peripheral_aresetn] [get_bd_pins meadowlark/aresetn]

connect_bd_intf_net [get_bd_intf_pins zynq/M_AXI_HPM0_FPD] [get_bd_intf_pins to_registers/S00_AXI]
connect_bd_intf_net [get_bd_intf_pins to_registers/M00_AXI] [get_bd_intf_pins meadowlark/s_axi]
connect_bd_intf_net [get_bd_intf_pins meadowlark/m_axi] [get_bd_intf_pins to_memory/S00_AXI]
connect_bd_intf_net [get_bd_intf_pins to_memory/M00_AXI] [get_bd_intf_pins zynq/S_AXI_HP0_FPD]
connect_bd_net [get_bd_pins meadowlark/irq] [get_bd_pins zynq/pl_ps_irq0]

# The registers at @WINDOW@. Of the processor's side Meadowlark sees the DDR and nothing else; it
# stays within @MEMORY_MIB@ MiB from the address that the driver gives it.
assign_bd_address -offset @WINDOW@ -range 4K \
    -target_address_space [get_bd_addr_spaces zynq/Data] [get_bd_addr_segs meadowlark/s_axi/reg0]
foreach segment [get_bd_addr_segs zynq/SAXIGP2/*] {
    if {[string match *DDR* $segment]} {
        assign_bd_address -target_address_space [get_bd_addr_spaces meadowlark/m_axi] $segment
    } else {
        exclude_bd_addr_seg -target_address_space [get_bd_addr_spaces meadowlark/m_axi] $segment
    }
}

regenerate_bd_layout
validate_bd_design
save_bd_design
