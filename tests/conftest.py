"""What holds for all tests."""

import signal


def pytest_configure() -> None:
    """Told to end, we end as on Ctrl-C: with every fixture torn down."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
