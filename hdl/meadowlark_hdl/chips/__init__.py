"""What stands around a core on a real chip: clocks, pins, memory controller, UART."""
