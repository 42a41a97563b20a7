"""Which MMU is right? Cases with the outcomes that `arch` allows, and what engines do with them."""
