"""What may be stale: the answers that a CPU may still give after stores and invalidations."""
