"""One module a command: each wires the other rooms to Ray and decides nothing itself."""
