"""`hivemesh doctor` against a running API: what is shown, and the exit code by severity."""

import json
import sys

import pytest
from api_harness import Result, Served, outside_api

from hivemesh.wire.doctor import Finding, Severity


async def doctor(api: Served, *options: str) -> Result:
    return await api.run(sys.executable, "-m", "hivemesh.cli", "doctor", *options)


def finding(severity: Severity) -> Finding:
    return Finding(
        check="ports", severity=severity, where="n1", what="port taken", why="it is ours", remedy="stop it", proof="ss"
    )


@pytest.mark.parametrize(("severity", "code"), [(None, 0), ("note", 0), ("warning", 1), ("error", 2)])
async def test_exit_code_tells_the_worst(severity: Severity | None, code: int) -> None:
    async with outside_api() as api:
        api.machine.findings = (finding(severity),) if severity else ()
        result = await doctor(api)
        assert result.code == code
        assert ("port taken  [ports]" in result.out) == (severity is not None)
        assert (f"1 {severity}" in result.out) if severity else ("all is well" in result.out)


async def test_findings_are_told_with_why_what_to_do_and_what_shows_them() -> None:
    async with outside_api() as api:
        api.machine.findings = (finding("error"),)
        lines = (await doctor(api)).out.splitlines()
        assert [line.split(maxsplit=1) for line in lines[1:4]] == [
            ["why", "it is ours"],
            ["do", "stop it"],
            ["see", "ss"],
        ]
        told = json.loads((await doctor(api, "--json")).out)
        assert told["findings"][0]["remedy"] == "stop it"


async def test_notes_are_left_out_when_asked_and_fixes_are_told() -> None:
    async with outside_api() as api:
        api.machine.findings = (finding("note"),)
        result = await doctor(api, "--no-notes", "--fix")
        assert result.code == 0
        assert "port taken" not in result.out
        assert "fixed  f" in result.out


async def test_unknown_field_of_the_question_is_refused_by_name() -> None:
    async with outside_api() as api:
        status, _, body = await api.http(
            "POST", "/hivemesh/doctor", b'{"repair": true}', "Content-Type: application/json"
        )
        assert status == 400
        assert "repair" in body["message"]
