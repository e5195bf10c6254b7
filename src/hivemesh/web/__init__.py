"""The picture of the swarm: composed of what is wanted and what kernels hold, laid out, and shown."""
