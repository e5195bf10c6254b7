"""The API as bytes see it: versions, headers, malformed requests, filters, locking."""

import asyncio
import json
from urllib.parse import quote

import pytest
from api_harness import manager_api, outside_api, serving, worker_api

from hivemesh.model.errors import Conflict

JSON = "Content-Type: application/json"
SERVICE = json.dumps({"Name": "web", "TaskTemplate": {"ContainerSpec": {"Image": "localhost/whoami"}}}).encode()


async def test_ping_tells_version_and_place_in_the_swarm() -> None:
    async with outside_api() as api:
        status, headers, body = await api.http("GET", "/_ping")
        assert (status, body) == (200, "OK")
        assert headers["api-version"] == "1.51"
        assert headers["swarm"] == "inactive"
        assert headers["ostype"] == "linux"
        assert headers["server"].startswith("Docker/")
        status, headers, body = await api.http("HEAD", "/_ping")
        assert (status, headers["content-length"], body) == (200, "0", "")
    async with manager_api() as api:
        assert (await api.http("GET", "/v1.41/_ping"))[1]["swarm"] == "active/manager"
    async with worker_api() as api:
        assert (await api.http("GET", "/_ping"))[1]["swarm"] == "active/worker"


@pytest.mark.parametrize(
    ("path", "status", "text"),
    [
        ("/v1.24/info", 400, "client version 1.24 is too old. Minimum supported API version is 1.40"),
        ("/v1.99/info", 400, "client version 1.99 is too new. Maximum supported API version is 1.51"),
        ("/v1.51/nosuch", 404, "page not found"),
        ("/nosuch/at/all", 404, "page not found"),
        ("/v1.40/services", 503, "This node is not a swarm manager. Use "),
        ("/containers/json", 501, "process engine"),
    ],
)
async def test_request_that_cannot_be_served_is_answered_in_json(path: str, status: int, text: str) -> None:
    async with outside_api() as api:
        got, headers, body = await api.http("GET", path)
        assert (got, headers["content-type"]) == (status, "application/json")
        assert text in body["message"]


@pytest.mark.parametrize(
    ("body", "headers", "text"),
    [
        (b'{"Name": "web",', [JSON], "invalid JSON: Input data was truncated"),
        (b'{"Name": }', [JSON], "invalid JSON: JSON is malformed: invalid character (byte 9)"),
        (SERVICE + b"x", [JSON], "trailing characters"),
        (SERVICE, ["Content-Type: text/plain"], "must be application/json"),
        (b"", [JSON], "no body"),
        (b"[]", [JSON], "expected an object"),
        (b"[" * 100_000, [JSON], "invalid JSON"),
        (b'{"Name": 5}', [JSON], "Expected `str`, got `int` - at `$.Name`"),
        (b'{"Mode":{"Replicated":{"Replicas":"two"}}}', [JSON], "at `$.Mode.Replicated.Replicas`"),
        (b'{"EndpointSpec":{"Mode":"magic"}}', [JSON], "at `$.EndpointSpec.Mode`"),
        (b'{"Mode":{"Replicated":{},"Global":{}}}', [JSON], "must specify only one service mode"),
    ],
)
async def test_bad_body_is_refused_with_what_and_where(body: bytes, headers: list[str], text: str) -> None:
    async with manager_api() as api:
        status, _, answer = await api.http("POST", "/services/create", body, *headers)
        assert status == 400
        assert text in answer["message"]
        assert await api.client.get("/services") == []


async def test_body_beyond_the_limit_is_refused() -> None:
    async with manager_api() as api:
        body = json.dumps({"Name": "x" * 5_000_000}).encode()
        status, _, answer = await api.http("POST", "/services/create", body, JSON)
        assert status == 413
        assert "larger than 4 MiB" in answer["message"]


async def test_field_names_match_whatever_their_case_and_null_means_not_given() -> None:
    async with manager_api() as api:
        body = b'{"name":"web","tasktemplate":{"containerspec":{"image":"x","Env":null},"Placement":null}}'
        assert (await api.http("POST", "/v1.40/services/create", body, JSON))[0] == 201
        assert (await api.client.get("/services/web"))["Spec"]["TaskTemplate"]["ContainerSpec"]["Image"] == "x"


async def test_networks_of_the_old_place_move_into_the_task_template() -> None:
    async with manager_api() as api:
        network = await api.client.post("/networks/create", {"Name": "back", "Driver": "overlay"})
        spec = {**json.loads(SERVICE), "Networks": [{"Target": "back"}]}
        await api.client.post("/services/create", spec)
        template = (await api.client.get("/services/web"))["Spec"]["TaskTemplate"]
        assert template["Networks"] == [{"Target": network["Id"]}]


async def test_stale_update_fails_with_the_words_that_tools_match() -> None:
    async with manager_api() as api:
        await api.http("POST", "/services/create", SERVICE, JSON)
        service = await api.client.get("/services/web")
        path = f"/services/web/update?version={service['Version']['Index'] + 1000}"
        for where in (path, "/services/web/update?version=1"):  # one to come, and one from before it was there
            status, _, answer = await api.http("POST", where, SERVICE, JSON)
            assert (status, answer["message"]) == (500, "rpc error: code = Unknown desc = update out of sequence")
        status, _, answer = await api.http("POST", "/services/web/update", SERVICE, JSON)
        assert status == 400
        assert "Version.Index" in answer["message"]


async def test_filters_come_in_both_encodings_and_unknown_ones_are_refused() -> None:
    async with manager_api() as api:
        for name in ("web", "web2", "db"):
            await api.client.post("/services/create", {**json.loads(SERVICE), "Name": name, "Labels": {"tier": name}})

        async def names(filters: object) -> list[str]:
            status, _, found = await api.http("GET", "/services?filters=" + quote(json.dumps(filters)))
            assert status == 200
            return sorted(service["Spec"]["Name"] for service in found)

        assert await names({"name": {"web": True}}) == ["web", "web2"]
        assert await names({"name": ["web"]}) == ["web", "web2"]
        assert await names({"name": ["web"], "label": ["tier=web2"]}) == ["web2"]
        assert await names({"label": ["tier"]}) == ["db", "web", "web2"]
        assert await names({"mode": ["global"]}) == []
        status, _, answer = await api.http("GET", "/services?filters=" + quote('{"color":["red"]}'))
        assert (status, answer["message"]) == (400, "invalid filter 'color'")
        status, _, answer = await api.http("GET", "/tasks?filters=" + quote('{"desired-state":["happy"]}'))
        assert status == 400
        status, _, answer = await api.http("GET", "/tasks?filters=" + quote('{"service":["nosuch"]}'))
        assert (status, answer["message"]) == (404, "service nosuch not found")


async def test_filter_values_that_nothing_can_have_are_refused_in_dockers_words() -> None:
    async with manager_api() as api:

        async def said(path: str, filters: object) -> tuple[int, str]:
            status, _, found = await api.http("GET", f"{path}?filters=" + quote(json.dumps(filters)))
            return status, found["message"] if status >= 400 else ""

        assert await said("/networks", {"type": ["odd"]}) == (400, "invalid filter: 'type'='odd': use builtin, custom")
        assert (await said("/networks", {"scope": ["planet"]}))[1].startswith("invalid filter: 'scope'='planet'")
        for values in (["maybe"], ["true", "false"]):
            words = f"invalid filter 'dangling=[{' '.join(values)}]': use true or false"
            assert await said("/networks", {"dangling": values}) == (400, words)
        assert await said("/networks", {"dangling": ["1"], "type": ["custom"], "scope": ["swarm"]}) == (200, "")
        assert await said("/plugins", {"capability": ["volumedriver"], "enabled": ["true"]}) == (200, "")
        assert (await said("/plugins", {"enabled": ["so-so"]}))[0] == 400
        assert await said("/plugins", {"color": ["red"]}) == (400, "invalid filter 'color'")


async def test_long_filters_and_headers_are_read() -> None:
    async with manager_api() as api:
        filters = quote(json.dumps({"label": ["x" * 20_000]}))
        assert (await api.http("GET", f"/services?filters={filters}"))[::2] == (200, [])
        assert (await api.http("GET", "/services", b"", f"X-Registry-Auth: {'e30=' * 5000}"))[0] == 200


@pytest.mark.parametrize("body", [b"0", b"[]", b'"x"', b'{"EndpointConfig": {"IPAMConfig": 3}, "Container": "x"}'])
async def test_body_of_another_shape_is_refused_and_no_internal_error(body: bytes) -> None:
    async with manager_api() as api:
        for verb in ("connect", "disconnect"):
            status, _, said = await api.http("POST", f"/networks/front/{verb}", body, JSON)
            assert status in (400, 404, 501), said


async def test_reference_is_an_id_a_name_or_a_unique_beginning() -> None:
    async with manager_api() as api:
        made = [await api.client.post("/services/create", {**json.loads(SERVICE), "Name": f"s{n}"}) for n in range(40)]
        identifier = made[0]["ID"]
        for ref in (identifier, "s0", identifier[:20]):
            assert (await api.client.get(f"/services/{ref}"))["ID"] == identifier
        digits = {value["ID"][0] for value in made}
        common = next(digit for digit in digits if sum(value["ID"][0] == digit for value in made) > 1)
        status, _, answer = await api.http("GET", f"/services/{common}")
        assert status == 400
        assert f"service {common} is ambiguous (" in answer["message"]


async def test_up_to_date_tasks_are_those_of_the_current_specification() -> None:
    async with manager_api() as api:
        await api.http("POST", "/services/create", SERVICE, JSON)
        service = await api.client.get("/services/web")
        spec = service["Spec"]
        spec["TaskTemplate"]["ContainerSpec"]["Image"] = "localhost/other"
        await api.client.post("/services/web/update", spec, {"version": service["Version"]["Index"]})
        filters = json.dumps({"service": {"web": True}, "_up-to-date": {"true": True}})
        assert len(await api.client.get("/tasks")) == 2
        current = await api.client.get("/tasks", {"filters": filters})
        assert [task["Spec"]["ContainerSpec"]["Image"] for task in current] == ["localhost/other"]
        task = await api.client.get(f"/tasks/{current[0]['ID']}")
        assert task["NetworksAttachments"] == []
        assert task["Slot"] == 1


async def test_swarm_cannot_be_renamed_and_is_not_locked_unless_asked() -> None:
    async with manager_api() as api:
        swarm = await api.client.get("/swarm")
        spec = {**swarm["Spec"], "Name": "other"}
        body = json.dumps(spec).encode()
        status, _, answer = await api.http("POST", f"/swarm/update?version={swarm['Version']['Index']}", body, JSON)
        assert status == 400
        assert "modification of cluster name is not allowed" in answer["message"]
        assert await api.client.get("/swarm/unlockkey") == {"UnlockKey": ""}
        with pytest.raises(Conflict, match="swarm is not locked"):
            await api.client.post("/swarm/unlock", {"UnlockKey": "x"})


async def test_join_request_reaches_the_node_as_sent() -> None:
    async with worker_api() as api:
        joined = api.machine.joined
        assert joined is not None
        assert joined.remote_addrs == ("198.51.100.11:2377",)
        assert joined.listen_addr == "0.0.0.0:2377"


async def test_events_tell_what_changed_and_remember_it() -> None:
    async with manager_api() as api:
        seen: asyncio.Queue[dict[str, object]] = asyncio.Queue()

        async def listen() -> None:
            async for event in api.client.lines("/events", {"filters": '{"type":["service","network"]}'}):
                await seen.put(event)

        listener = asyncio.create_task(listen())
        await asyncio.sleep(0.1)
        try:
            await api.client.post("/networks/create", {"Name": "back", "Driver": "overlay"})
            await api.http("POST", "/services/create", SERVICE, JSON)
            service = await api.client.get("/services/web")
            spec = {**service["Spec"], "Mode": {"Replicated": {"Replicas": 3}}}
            await api.client.post("/services/web/update", spec, {"version": service["Version"]["Index"]})
            await api.client.delete("/services/web")
            async with asyncio.timeout(5):
                events = [await seen.get() for _ in range(4)]
        finally:
            listener.cancel()
            await asyncio.gather(listener, return_exceptions=True)
        assert [(event["Type"], event["Action"], event["scope"]) for event in events] == [
            ("network", "create", "swarm"),
            ("service", "create", "swarm"),
            ("service", "update", "swarm"),
            ("service", "remove", "swarm"),
        ]
        actor = events[2]["Actor"]
        assert isinstance(actor, dict)
        assert actor["Attributes"] == {"name": "web", "replicas.old": "1", "replicas.new": "3"}
        query = {"since": "1", "until": str(api.machine.clock.now()), "filters": '{"type":["service"]}'}
        async with asyncio.timeout(5):
            again = [event["Action"] async for event in api.client.lines("/events", query)]
        assert again == ["create", "update", "remove"]


async def test_second_server_on_the_same_socket_is_refused() -> None:
    async with outside_api() as api:
        with pytest.raises(Conflict, match="already answers"):
            async with serving(api.machine, api.socket):
                pass
        assert (await api.http("GET", "/_ping"))[0] == 200


async def test_update_may_repeat_its_options_in_its_body() -> None:
    """dockerode sends everything in both places."""
    async with manager_api() as api:
        await api.http("POST", "/services/create", SERVICE, JSON)
        index = (await api.http("GET", "/services/web"))[2]["Version"]["Index"]
        spec = {**json.loads(SERVICE), "Labels": {"a": "b"}}
        status, _, body = await api.http(
            "POST",
            f"/services/web/update?version={index}&Labels=a",
            json.dumps({**spec, "version": index}).encode(),
            JSON,
        )
        assert status == 200, body
        assert (await api.http("GET", "/services/web"))[2]["Spec"]["Labels"] == {"a": "b"}
        status, _, body = await api.http(
            "POST", f"/services/web/update?version={index}", json.dumps({**spec, "other": index}).encode(), JSON
        )
        assert (status, body["message"]) == (501, "other is not supported")
