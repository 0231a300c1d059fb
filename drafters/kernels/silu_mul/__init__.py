"""silu(gate) * up of a joint projection [T, 2 f] = [gate, up], in one launch instead of two."""
