"""The way of a packet through this node: as planned, as the kernel has it, and what a difference means."""
