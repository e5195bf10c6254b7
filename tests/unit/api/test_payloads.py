"""Secrets and configs as users type them, through the docker CLI and our own, and as other clients send them."""

import base64
import json
import shutil
import sys
from pathlib import Path

import pytest
from api_harness import Served, manager_api, worker_api

from hivemesh.client import Client
from hivemesh.model.errors import HivemeshError, Invalid, OutOfSequence, Unsupported

needs_docker = pytest.mark.skipif(shutil.which("docker") is None, reason="there is no docker command here")
HUSH = "correct-horse-battery"


async def create(api: Served, *options: str) -> str:
    base = ("service", "create", "--detach", "--no-resolve-image", "--name=web")
    return (await api.docker(*base, *options, "localhost/whoami")).strip()


async def ours(api: Served, *words: str, stdin: bytes | None = None) -> str:
    result = await api.run(sys.executable, "-m", "hivemesh.cli", *words, stdin=stdin)
    assert result.code == 0, result
    return result.out


@needs_docker
async def test_secret_is_made_listed_and_shown_without_its_data() -> None:
    async with manager_api() as api:
        made = (await api.docker("secret", "create", "--label=a=b", "pw", "-", stdin=HUSH.encode())).strip()
        assert await api.docker("secret", "ls", "--format={{.ID}} {{.Name}}") == f"{made} pw\n"
        for filters, count in (("name=p", 1), ("label=a", 1), ("label=a=c", 0), (f"id={made[:5]}", 1), ("name=w", 0)):
            assert len((await api.docker("secret", "ls", "-q", f"--filter={filters}")).split()) == count
        shown = json.loads(await api.docker("secret", "inspect", "pw"))[0]
        assert shown["Spec"] == {"Name": "pw", "Labels": {"a": "b"}}
        everything = [await api.http("GET", path) for path in ("/secrets", f"/secrets/{made}", "/services")]
        assert HUSH not in str(everything)
        assert base64.b64encode(HUSH.encode()).decode() not in str(everything)
        again = await api.run("docker", "secret", "create", "pw", "-", stdin=b"x")
        assert "secret pw already exists" in again.err
        assert await api.docker("secret", "rm", "pw") == "pw\n"
        missing = await api.docker_error("secret", "inspect", "pw")
        assert "secret pw not found" in missing or "no such secret: pw" in missing.lower()


@needs_docker
async def test_config_shows_its_data() -> None:
    async with manager_api() as api:
        await api.docker("config", "create", "--template-driver=golang", "site", "-", stdin=b"{{.Task.Slot}}")
        spec = json.loads(await api.docker("config", "inspect", "site"))[0]["Spec"]
        assert base64.b64decode(spec["Data"]) == b"{{.Task.Slot}}"
        assert spec["Templating"]["Name"] == "golang"


@needs_docker
async def test_service_uses_what_exists_and_protects_it() -> None:
    async with manager_api() as api:
        secret = (await api.docker("secret", "create", "pw", "-", stdin=HUSH.encode())).strip()
        config = (await api.docker("config", "create", "site", "-", stdin=b"x")).strip()
        await create(api, "--secret=source=pw,target=deep/pw,uid=7,gid=8,mode=0400", "--config=site")
        container = json.loads(await api.docker("service", "inspect", "web"))[0]["Spec"]["TaskTemplate"][
            "ContainerSpec"
        ]
        file = {"Name": "deep/pw", "UID": "7", "GID": "8", "Mode": 0o400}
        assert container["Secrets"] == [{"File": file, "SecretID": secret, "SecretName": "pw"}]
        file = {"Name": "/site", "UID": "0", "GID": "0", "Mode": 0o444}
        assert [
            c | {"File": {**c["File"], "Name": "/" + c["File"]["Name"].lstrip("/")}} for c in container["Configs"]
        ] == [{"File": file, "ConfigID": config, "ConfigName": "site"}]
        code = "rpc error: code = InvalidArgument desc ="
        for kind, name in (("secret", "pw"), ("config", "site")):
            refused = await api.docker_error(kind, "rm", name)
            assert f"{code} {kind} '{name}' is in use by the following service: web" in refused
        await api.docker(
            "service", "update", "--detach", "--no-resolve-image", "--secret-rm=pw", "--config-rm=site", "web"
        )
        await api.docker("secret", "rm", "pw")
        await api.docker("config", "rm", "site")
        assert "secret not found: pw" in await api.docker_error("service", "create", "--secret=pw", "x")


@needs_docker
async def test_worker_says_that_managers_keep_secrets() -> None:
    async with worker_api() as api:
        for kind in ("secret", "config"):
            assert "Worker nodes can't be used" in await api.docker_error(kind, "ls")


async def refused(client: Client, path: str, body: object, **query: object) -> HivemeshError:
    with pytest.raises(HivemeshError) as caught:
        await client.post(path, body, query)
    return caught.value


async def test_bad_input_of_other_clients_is_refused_in_words() -> None:
    async with manager_api() as api:
        client, data = api.client, base64.b64encode(b"x").decode()
        for body, kind, words in (
            ({"Name": "a"}, Invalid, "secret data must be larger than 0"),
            ({"Name": "a", "Data": "%%"}, Invalid, "invalid SecretSpec"),
            ({"Name": "-", "Data": data}, Invalid, "invalid name, only 64"),
            ({"Name": "a", "Data": data, "Driver": {"Name": "vault"}}, Unsupported, "Driver is not supported"),
            ({"Name": "a", "Data": data, "Templating": {"Name": "x"}}, Invalid, "unrecognized template type"),
        ):
            error = await refused(client, "/secrets/create", body)
            assert isinstance(error, kind)
            assert words in str(error)
        made = (await client.post("/secrets/create", {"Name": "a", "Data": data}))["ID"]
        index = (await client.get(f"/secrets/{made}"))["Version"]["Index"]
        other = {"Name": "a", "Data": base64.b64encode(b"y").decode()}
        stale = await refused(client, f"/secrets/{made}/update", {"Name": "a"}, version=index + 1)
        assert isinstance(stale, OutOfSequence)
        assert "only updates to Labels" in str(await refused(client, f"/secrets/{made}/update", other, version=index))
        await client.post(
            f"/secrets/{made}/update", {"Name": "a", "Data": data, "Labels": {"k": "v"}}, {"version": index}
        )
        assert (await client.get("/secrets/a"))["Spec"]["Labels"] == {"k": "v"}
        assert [s["ID"] for s in await client.get("/secrets", {"filters": '{"names":["a"]}'})] == [made]
        assert "invalid filter 'names'" in (await api.http("GET", '/configs?filters={"names":["a"]}'))[2]["message"]


async def test_events_tell_names_and_nothing_of_the_data() -> None:
    async with manager_api() as api:
        data = base64.b64encode(HUSH.encode()).decode()
        for kind in ("secrets", "configs"):
            made = (await api.client.post(f"/{kind}/create", {"Name": "a", "Data": data}))["ID"]
            index = (await api.client.get(f"/{kind}/{made}"))["Version"]["Index"]
            await api.client.post(f"/{kind}/{made}/update", {"Name": "a", "Labels": {"k": "v"}}, {"version": index})
            await api.client.delete(f"/{kind}/{made}")
        query = {"since": "1", "until": "1e11", "filters": '{"type":["secret","config"]}'}
        told = []
        async for event in api.client.lines("/events", query):
            told.append((event["Type"], event["Action"], event["Actor"]["Attributes"]))
            if len(told) == 6:
                break
        name = {"name": "a"}
        assert told == [(k, a, name) for k in ("secret", "config") for a in ("create", "update", "remove")]


async def test_our_own_command_does_the_same(tmp_path: Path) -> None:
    async with manager_api() as api:
        (tmp_path / "site.conf").write_text("listen")
        secret = (await ours(api, "secret", "create", "-l", "a=b", "pw", "-", stdin=HUSH.encode())).strip()
        await ours(api, "config", "create", "--template-driver", "golang", "site", str(tmp_path / "site.conf"))
        assert [line.split()[1] for line in (await ours(api, "secret", "ls")).splitlines()] == ["NAME", "pw"]
        assert HUSH not in await ours(api, "secret", "inspect", "pw")
        options = ("--secret", "source=pw,target=k,mode=0400", "--config", "site")
        await ours(api, "service", "create", "-d", "--name", "web", *options, "localhost/whoami")
        container = (await api.client.get("/services/web"))["Spec"]["TaskTemplate"]["ContainerSpec"]
        file = {"Name": "k", "UID": "0", "GID": "0", "Mode": 0o400}
        assert container["Secrets"] == [{"File": file, "SecretID": secret, "SecretName": "pw"}]
        assert container["Configs"][0]["File"]["Name"] == "site"
        await ours(api, "service", "update", "-d", "--secret-rm", "pw", "--secret-add", "source=pw,target=z", "web")
        container = (await api.client.get("/services/web"))["Spec"]["TaskTemplate"]["ContainerSpec"]
        assert [reference["File"]["Name"] for reference in container["Secrets"]] == ["z"]
        still = await api.run(sys.executable, "-m", "hivemesh.cli", "secret", "rm", "pw")
        assert "is in use by the following service: web" in still.err
        for words, text in (
            (("--secret", "nosuch"), "secret not found: nosuch"),
            (("--secret", "source=pw,color=red"), "unknown key 'color'"),
            (("--config", "source=site,mode=9"), "no octal number"),
        ):
            wrong = await api.run(sys.executable, "-m", "hivemesh.cli", "service", "create", *words, "x")
            assert text in wrong.err
        await ours(api, "service", "rm", "web")
        assert await ours(api, "secret", "rm", "pw") == "pw\n"
