"""Rules about what must not be mapped so, and the policy that says how much each matters."""
