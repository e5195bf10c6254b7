"""Connections spread over backends: one Protocol (`api`), one module per engine."""
