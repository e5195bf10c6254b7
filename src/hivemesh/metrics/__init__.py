"""What this node counts: read from the kernel and from its own parts, named, summed up, and told."""
