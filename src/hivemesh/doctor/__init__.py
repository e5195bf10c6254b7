"""What is wrong with a machine, a node or the ways between nodes, and what to do about it: facts, judges, remedies."""
