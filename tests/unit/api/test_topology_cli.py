"""`hivemesh topology`, by an API that draws a swarm of its own."""

import json
import sys
from pathlib import Path
from xml.etree import ElementTree

from api_harness import Result, Served, manager_api, outside_api


async def topology(api: Served, *words: str) -> Result:
    return await api.run(str(Path(sys.executable).with_name("hivemesh")), "topology", *words)


async def test_without_a_file_the_swarm_is_told_in_words() -> None:
    async with manager_api() as api:
        await api.docker("service", "create", "--detach", "--name", "web", "--publish", "8080:80", "whoami")
        said = await topology(api)
        assert (said.code, said.err) == (0, "")
        lines = said.out.splitlines()
        assert lines[0].startswith("default: 1/1 nodes, 1 services,")
        assert any(line.startswith("service web") and ":8080" in line for line in lines)


async def test_files_are_written_in_each_form_and_a_dash_is_standard_output(tmp_path: Path) -> None:
    async with manager_api() as api:
        drawn, text = tmp_path / "swarm.svg", tmp_path / "swarm.dot"
        said = await topology(api, "--svg", str(drawn), "--dot", str(text), "--json", "-", "--detail", "full")
        assert said.code == 0, said
        assert ElementTree.parse(drawn).getroot().tag.endswith("svg")
        assert text.read_text().startswith("digraph")
        assert [item["kind"] for item in json.loads(said.out)["items"]].count("machine") == 1


async def test_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    async with manager_api() as api:
        said = await topology(api, "--svg", str(tmp_path / "no" / "where.svg"))
        assert said.code == 1
        assert "cannot write" in said.err
        assert "where.svg" in said.err


async def test_node_that_is_no_manager_says_so_and_detail_is_checked() -> None:
    async with outside_api() as api:
        said = await topology(api)
        assert (said.code, "no manager" in said.err) == (1, True)
    async with manager_api() as api:
        status, _, body = await api.http("GET", "/hivemesh/topology?detail=some")
        assert (status, "'some'" in body["message"]) == (400, True)
