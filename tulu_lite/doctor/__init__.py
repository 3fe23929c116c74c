"""What is wrong, and what it probably comes from: the machine (`environment`), sampler against trainer (`parity`)."""
