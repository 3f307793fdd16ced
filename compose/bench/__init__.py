"""The benchmark: what the fleet adds to a call, measured beside what it is compared with."""
