"""Options about names and health, as changes to what is there."""

from collections.abc import Callable
from typing import Any

import click
import pytest
from click.testing import CliRunner

from hivemesh.cli import namespec
from hivemesh.model.errors import Invalid, NotFound


def given(options: Callable[[Callable[..., Any]], Callable[..., Any]], *arguments: str) -> dict[str, Any]:
    """What click makes of the command line."""
    found: dict[str, Any] = {}

    @click.command()
    @options
    def command(**shared: Any) -> None:
        found.update(shared)

    result = CliRunner().invoke(command, list(arguments))
    assert result.exit_code == 0, result.output
    return found


def created(*arguments: str) -> dict[str, Any]:
    container: dict[str, Any] = {}
    namespec.apply_created(container, given(namespec.create_options, *arguments))
    return container


def updated(container: dict[str, Any], *arguments: str) -> dict[str, Any]:
    namespec.apply_updated(container, given(namespec.update_options, *arguments))
    return container


def test_nothing_given_says_nothing() -> None:
    assert created() == {"Hosts": []}
    assert updated({"Healthcheck": {"Test": ["NONE"]}}) == {
        "Healthcheck": {"Test": ["NONE"]},
        "DNSConfig": {},
        "Hosts": [],
    }


def test_new_container_knows_the_names_given() -> None:
    container = created(
        "--dns=10.0.0.1", "--dns=fd00::1", "--dns-search=a.example", "--dns-option=ndots:2", "--host=db:fd00::2"
    )
    assert container["DNSConfig"] == {
        "Nameservers": ["10.0.0.1", "fd00::1"],
        "Search": ["a.example"],
        "Options": ["ndots:2"],
    }
    assert container["Hosts"] == ["fd00::2 db"]


def test_names_are_added_and_removed_one_by_one() -> None:
    container = created("--dns=10.0.0.1", "--dns=10.0.0.2", "--host=db:10.0.0.3", "--host=db:10.0.0.4")
    updated(container, "--dns-rm=10.0.0.1", "--dns-add=10.0.0.9", "--dns-search-add=x", "--host-rm=db:10.0.0.3")
    assert container["DNSConfig"] == {"Nameservers": ["10.0.0.2", "10.0.0.9"], "Search": ["x"]}
    assert container["Hosts"] == ["10.0.0.4 db"]
    updated(container, "--dns-search-rm=x", "--host-add=web:10.0.0.5", "--host-rm=db")
    assert container["DNSConfig"] == {"Nameservers": ["10.0.0.2", "10.0.0.9"]}
    assert container["Hosts"] == ["10.0.0.5 web"]
    with pytest.raises(NotFound, match=r"no dns entry 10\.9\.9\.9"):
        updated(container, "--dns-rm=10.9.9.9")
    with pytest.raises(NotFound, match="no host db"):
        updated(container, "--host-rm=db")
    with pytest.raises(Invalid, match="write name:address"):
        updated(container, "--host-add=db")


def test_health_check_is_made_changed_and_switched_off_and_on() -> None:
    container = created("--health-cmd=curl -f localhost", "--health-interval=5s", "--health-retries=2")
    assert container["Healthcheck"] == {
        "Test": ["CMD-SHELL", "curl -f localhost"],
        "Interval": 5_000_000_000,
        "Retries": 2,
    }
    updated(container, "--health-timeout=1s", "--health-start-period=1m", "--health-start-interval=100ms")
    assert container["Healthcheck"]["Interval"] == 5_000_000_000
    assert container["Healthcheck"]["StartPeriod"] == 60_000_000_000
    assert updated(container, "--no-healthcheck")["Healthcheck"] == {"Test": ["NONE"]}
    assert updated(container, "--health-retries=5")["Healthcheck"] == {"Retries": 5}
    with pytest.raises(Invalid, match="--no-healthcheck conflicts with --health-"):
        updated(container, "--no-healthcheck", "--health-retries=1")
