"""Names in every sandbox of a node: `hivemesh-resolver` answers at 127.0.0.11, and what it does not know it asks on."""
