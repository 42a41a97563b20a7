"""Secondary CPUs, and the local APIC that starts them."""
