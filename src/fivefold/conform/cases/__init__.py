"""Cases: what they are made of, the systematic product, random ones, and their listing."""
