"""The manifests in deploy/: they parse, what they refer to is there, and the programs in them are ours and run."""

from __future__ import annotations

import itertools
import os
import re
import runpy
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from psycopg import conninfo

from pleinair import krablet
from pleinair.cli.main import build_parser
from pleinair.krablet.watching.gauges import Watcher
from pleinair.krablet.watching.prometheus import metrics_text
from pleinair.krablet.watching.shard_status import ShardStatus
from tests.krablet.conftest import Pictures

DEPLOY = Path(__file__).parents[2] / "deploy"
FILES = sorted(DEPLOY.rglob("*.yaml"))
Object = dict[str, Any]


@cache
def everything() -> list[Object]:
    return [made for file in FILES for made in yaml.safe_load_all(file.read_text("ascii"))]


def objects(*kinds: str) -> list[Object]:
    """The objects of these kinds, or all."""
    return [made for made in everything() if made["kind"] in kinds or not kinds]


def pods() -> dict[str, Object]:
    """Pod templates by the name of their Deployment or Job."""
    return {made["metadata"]["name"]: made["spec"]["template"] for made in objects("Deployment", "Job")}


def containers() -> dict[str, Object]:
    return {name: container for name, pod in pods().items() for container in pod["spec"]["containers"]}


def values(tree: object, key: str) -> Iterator[Any]:
    """Everything that stands under a key, anywhere in a tree."""
    if isinstance(tree, dict):
        for name, value in tree.items():
            if name == key:
                yield value
            yield from values(value, key)
    elif isinstance(tree, list):
        for value in tree:
            yield from values(value, key)


def environment(container: Object) -> dict[str, Any]:
    return {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in container["env"]}


def dsns(container: Object) -> list[dict[str, Any]]:
    """The parts of every connection string a container is given."""
    given = environment(container)
    texts = [word.removeprefix("--dsn=") for word in container.get("args", []) if word.startswith("--dsn=")]
    texts += given.get("KRABLET_DSNS", given.get("KRABLET_DSN", "")).split(";")
    return [conninfo.conninfo_to_dict(text) for text in texts if text]


def test_every_file_is_used_and_no_object_is_there_twice() -> None:
    [built] = objects("Kustomization")
    alternative = DEPLOY / "scaling" / "hpa.yaml"
    assert {DEPLOY / name for name in built["resources"]} == {*FILES} - {DEPLOY / "kustomization.yaml", alternative}
    named = [(made["kind"], made["metadata"]["name"]) for made in objects() if made["kind"] != "Kustomization"]
    assert len(named) == len(set(named))


def test_all_shards_are_the_first_with_another_number() -> None:
    made = runpy.run_path(str(DEPLOY / "make_shards.py"))
    files = sorted((DEPLOY / "shards").glob("shard-*.yaml"))
    assert len(files) == 3
    for number in range(1, len(files)):
        assert files[number].read_text() == made["shard"](number)
        assert "krablet-0" not in files[number].read_text().replace("--dsn=host=krablet-0-rw", "")


def secrets() -> set[tuple[str, str | None]]:
    """Every Secret that is referred to, with the key that is read where one is named."""
    found: set[tuple[str, str | None]] = set()
    for made in objects():
        found |= {(given["name"], given["key"]) for given in values(made, "secretKeyRef")}
        found |= {(given["secretName"], None) for given in values(made, "secret") if "secretName" in given}
        found |= {(given["name"], "password") for given in values(made, "passwordSecret")}
        found |= {(name, "ca.crt") for name in values(made, "serverCASecret")}
        found |= {(given["name"], "password") for given in values(made, "secret") if "name" in given}
        for credentials in values(made, "s3Credentials"):
            found |= {(given["name"], given["key"]) for given in credentials.values()}
    return found


def test_secrets_are_only_referred_to_and_the_readme_lists_each_with_its_keys() -> None:
    assert objects("Secret") == []
    rows = re.findall(r"^\| `(krablet-[\w-]+)` \| (.*?) \|", (DEPLOY / "README.md").read_text(), re.MULTILINE)
    listed = {name: set(re.findall(r"`([\w.]+)`", keys)) for name, keys in rows}
    assert {name for name, _ in secrets()} == set(listed)
    for name, key in secrets():
        assert key is None or key in listed[name], (name, key)


def test_volumes_are_mounted_and_files_named_on_command_lines_lie_in_them() -> None:
    [built] = objects("Kustomization")
    config_maps = {made["name"]: {Path(file).name for file in made["files"]} for made in built["configMapGenerator"]}
    for name, pod in pods().items():
        container = containers()[name]
        mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert mounted.keys() == {volume["name"] for volume in pod["spec"]["volumes"]}, name
        words = " ".join(
            [*container["command"], *container.get("args", []), *map(str, environment(container).values())]
        )
        for path in re.findall(r"/etc/krablet/[\w./-]+", words):
            assert str(Path(path).parent) in mounted.values(), (name, path)
        for given in values(pod, "configMap"):
            assert Path(container["command"][-1]).name in config_maps[given["name"]]


def test_selectors_find_pods_and_ports_are_theirs() -> None:
    labels = {name: pod["metadata"]["labels"] for name, pod in pods().items()}
    for made in objects("Deployment"):
        assert made["spec"]["selector"]["matchLabels"].items() <= labels[made["metadata"]["name"]].items()
    for service in objects("Service"):
        [name] = [name for name, found in labels.items() if service["spec"]["selector"].items() <= found.items()]
        ports = {port["name"]: port["containerPort"] for port in containers()[name]["ports"]}
        for port in service["spec"]["ports"]:
            assert ports[port["targetPort"]] == port["port"]
    for budget in objects("PodDisruptionBudget"):
        assert any(budget["spec"]["selector"]["matchLabels"].items() <= found.items() for found in labels.values())
    for name, container in containers().items():
        named = {port["name"]: str(port["containerPort"]) for port in container.get("ports", [])}
        assert {probe["port"] for probe in values(container, "tcpSocket")} <= named.keys()
        assert [word.rpartition(":")[2] for word in container.get("args", []) if "--listen" in word] == list(
            named.values()
        ), name


def test_policies_are_about_pods_that_are_there() -> None:
    labels = [pod["metadata"]["labels"] for pod in pods().values()]
    clusters = {cluster["metadata"]["name"] for cluster in objects("Cluster")}
    ports = {port["name"] for container in containers().values() for port in container.get("ports", [])}
    for policy in objects("NetworkPolicy"):
        wanted = policy["spec"]["podSelector"]
        if "cnpg.io/cluster" in (exact := wanted.get("matchLabels", {})):
            assert exact["cnpg.io/cluster"] in clusters
        elif exact:
            assert any(exact.items() <= found.items() for found in labels)
        for rule in wanted.get("matchExpressions", []):
            assert set(rule["values"]) <= {found[rule["key"]] for found in labels}
        named = {port["port"] for entry in policy["spec"].get("ingress", []) for port in entry["ports"]}
        assert {port for port in named if isinstance(port, str)} <= ports
    allowed = {name for name, pod in pods().items() if pod["metadata"]["labels"].get("krablet-postgres-client")}
    assert allowed == {name for name, container in containers().items() if dsns(container)}


def test_monitors_and_backups_find_what_they_are_for() -> None:
    clusters = {cluster["metadata"]["name"]: cluster for cluster in objects("Cluster")}
    stores = {store["metadata"]["name"] for store in objects("ObjectStore")}
    for name, cluster in clusters.items():
        [plugin] = cluster["spec"]["plugins"]
        assert (plugin["parameters"]["barmanObjectName"] in stores, plugin["isWALArchiver"]) == (True, True), name
    for backup in objects("ScheduledBackup"):
        [plugin] = clusters[backup["spec"]["cluster"]["name"]]["spec"]["plugins"]
        assert backup["spec"]["pluginConfiguration"]["name"] == plugin["name"]
    watched = {monitor["spec"]["selector"]["matchLabels"]["cnpg.io/cluster"] for monitor in objects("PodMonitor")}
    assert watched == {*clusters} == {backup["spec"]["cluster"]["name"] for backup in objects("ScheduledBackup")}
    [monitor], services = objects("ServiceMonitor"), objects("Service")
    [service] = [
        made for made in services
        if monitor["spec"]["selector"]["matchLabels"].items() <= made["metadata"].get("labels", {}).items()
    ]  # fmt: skip
    assert {end["port"] for end in monitor["spec"]["endpoints"]} <= {port["name"] for port in service["spec"]["ports"]}
    for scaler in objects("ScaledObject", "HorizontalPodAutoscaler"):
        assert scaler["spec"]["scaleTargetRef"]["name"] in pods()


def test_commands_are_ours_with_arguments_they_take() -> None:
    ran = set()
    for container in containers().values():
        if container["command"][0] == "pleinair":
            words = [*container["command"][1:], *container.get("args", [])]
            assert callable(build_parser().parse_args(words).run)
            ran.add(words[1])
    assert ran == {"funnel", "rpc", "metrics"}


def test_every_login_is_made_given_its_rights_and_used_with_its_password() -> None:
    declared = logins_declared()
    clusters = objects("Cluster")
    hosts = {f"{cluster['metadata']['name']}-rw" for cluster in clusters}
    for cluster in clusters:
        managed = {role["name"]: role for role in cluster["spec"]["managed"]["roles"]}
        assert set(managed) == set(declared.values())
        assert all(role["login"] for role in managed.values())
        assert {role["passwordSecret"]["name"] for role in managed.values()} == {f"krablet-{kind}" for kind in declared}
    owners = {cluster["spec"]["bootstrap"]["initdb"]["owner"] for cluster in clusters}
    for name, container in containers().items():
        for dsn in dsns(container):
            assert dsn["host"] in hosts, name
            assert dsn["user"] in {*declared.values(), *owners}
            assert (dsn["sslmode"], dsn["sslrootcert"]) == ("verify-full", "/etc/krablet/ca/ca.crt")
            assert "password" not in dsn
            secret = environment(container)["PGPASSWORD"]["secretKeyRef"]["name"]
            assert secret == dsn["user"].replace("_", "-")
    assert {dsn["host"] for dsn in dsns(containers()["krablet-declare"])} == hosts
    assert {dsn["host"] for dsn in dsns(containers()["krablet-rpc"])} == hosts


def logins_declared() -> dict[str, str]:
    text = (DEPLOY / "app" / "declare.py").read_text()
    return dict(re.findall(r'^    "(\w+)": "(krablet_\w+)",$', text, re.MULTILINE))


@pytest.fixture
def page(pictures: Pictures) -> str:
    """What /metrics prints."""
    pictures.add(1)
    krablet.work(pictures.ocr, lambda rows: [{"contains_text": True}] * len(rows))
    with closing(Watcher(pictures.database)) as watcher:
        return metrics_text(watcher.look(), [ShardStatus(0, "here", 1024, lag_seconds=0.0)])


def test_alerts_and_autoscalers_ask_for_metrics_that_are_served(page: str) -> None:
    served = {
        name: dict(re.findall(r'(\w+)="([^"]*)"', labels))
        for name, labels in re.findall(r"^(pleinair_\w+)(?:\{(.*)\})? ", page, re.MULTILINE)
    }
    states = set(re.findall(r'state="(\w+)"', page))
    asked = [*itertools.chain(*(values(made, "expr") for made in objects("PrometheusRule")))]
    asked += [*itertools.chain(*(values(made, "query") for made in objects("ScaledObject")))]
    for expression in asked:
        names = re.findall(r"pleinair_\w+", expression)
        assert names, expression
        assert {*names} <= served.keys(), expression
        known = set().union(*(served[name] for name in names))
        for grouped in re.findall(r"by \(([\w, ]+)\)", expression):
            assert set(grouped.split(", ")) <= known, expression
        for given in re.findall(r'state=~?"([\w|]+)"', expression):
            assert set(given.split("|")) <= states, expression
    for rule in itertools.chain(*itertools.chain(*(values(made, "rules") for made in objects("PrometheusRule")))):
        used = set(re.findall(r"\$labels\.(\w+)", str(rule["annotations"])))
        assert used <= set().union(*(served[name] for name in re.findall(r"pleinair_\w+", rule["expr"]))), rule["alert"]
    [scaler] = objects("HorizontalPodAutoscaler")
    for metric in values(scaler, "metric"):
        assert metric["name"] in served
        assert {*values(metric["selector"], "key")} <= served[metric["name"]].keys()
        assert set(*values(metric["selector"], "values")) <= states


def test_the_programs_declare_and_work_on_three_shards_under_their_logins(postgres: krablet.Database) -> None:
    tag = uuid.uuid4().hex[:8]
    logins = {"owner": "krablet_owner", **logins_declared()}
    shards = [conninfo.make_conninfo(postgres.dsn, dbname=f"deploy_{tag}_{place}") for place in range(3)]
    owners = [conninfo.make_conninfo(shard, user="krablet_owner") for shard in shards]
    with postgres.connection() as admin:
        for login in logins.values():
            admin.execute(f"CREATE ROLE {login} LOGIN")
        for place in range(3):
            admin.execute(f"CREATE DATABASE deploy_{tag}_{place} OWNER krablet_owner")
        try:
            for _ in range(2):  # again after a change
                with run_program("declare.py", KRABLET_DSNS=";".join(owners)) as declaring:
                    assert declaring.communicate(timeout=60) == ("3 shards, 1 stages\n", None)
            with krablet.connect(owners[0]) as database:
                images = database.declared_table("images")
                images.upsert({"path": f"picture-{number}"} for number in range(60))
                dsn = conninfo.make_conninfo(shards[0], user="krablet_worker")
                with run_program("worker.py", KRABLET_DSN=dsn) as worker:
                    while images.count("width IS NOT NULL") < 60 and worker.poll() is None:
                        time.sleep(0.05)
                    worker.terminate()
                    assert worker.wait(30) == 0
                assert images.count("width = length(path)") == 60
        finally:
            for place in range(3):
                admin.execute(f"DROP DATABASE deploy_{tag}_{place} WITH (FORCE)")
            for login in logins.values():
                admin.execute(f"DROP ROLE {login}")


def run_program(name: str, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(DEPLOY / "app" / name)]
    return subprocess.Popen(command, env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True)
