"""Between a policy and a motor: which command is sent now, out of the chunks that have come so far."""
