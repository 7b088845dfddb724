"""Networks that the unroll can train, behind one interface."""
