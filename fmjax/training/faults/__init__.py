"""What goes wrong: bad steps, hangs, interruptions, broken devices."""
