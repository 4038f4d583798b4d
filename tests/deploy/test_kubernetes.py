"""The Kubernetes documents: fields and types of KubeRay, one user without rights, retries by exit code, one token."""

from __future__ import annotations

import copy
import json
import re
import shlex
import subprocess
from typing import Any

import jsonschema
import pytest
import yaml

from bertray.cli import CODE_NAMES
from bertray.config import build_config, load_config
from tests.deploy.kuberay import DEFINITIONS, FIELDS, ROOT, declared_fields, definition, documents, of_ray, types_in

ALL = documents()
PINS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)


def pod_specs(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Every pod that a document makes."""
    if isinstance(document, dict):
        own = [document] if "containers" in document else []
        return own + [spec for value in document.values() for spec in pod_specs(value)]
    return [spec for value in document for spec in pod_specs(value)] if isinstance(document, list) else []


def ray_job(document: dict[str, Any]) -> dict[str, Any]:
    """Spec of a RayJob, or of the jobs of a RayCronJob."""
    spec: dict[str, Any] = document["spec"]
    return spec.get("jobTemplate", spec)


def test_there_is_a_job_to_train_one_to_score_and_a_schedule_with_and_without_the_operator():
    assert {key: document["apiVersion"] for key, document in ALL.items() if document["kind"] != "ConfigMap"} == {
        ("rayjob-train.yaml", "RayJob"): "ray.io/v1",
        ("rayjob-score.yaml", "RayJob"): "ray.io/v1",
        ("raycronjob-score.yaml", "RayCronJob"): "ray.io/v1",
        ("cronjob-score.yaml", "CronJob"): "batch/v1",
    }


def test_every_field_is_one_of_kuberay_with_its_type():
    known = json.loads(FIELDS.read_text(encoding="utf-8"))
    for (file, kind), document in of_ray().items():
        for path, found in types_in(document):
            if "metadata" not in path:
                declared = known[kind].get(path)
                allowed = declared if isinstance(declared, list) else [declared]
                assert found in allowed or (found, declared) == ("integer", "number"), f"{file}: {path} is {found}"


@pytest.mark.slow
@pytest.mark.skipif(not DEFINITIONS.is_dir(), reason="KubeRay's definitions are not beside the repository")
def test_every_document_is_valid_by_kuberays_own_definition_and_a_wrong_type_is_not():
    assert json.loads(FIELDS.read_text(encoding="utf-8")) == declared_fields()
    for (_, kind), document in of_ray().items():
        valid = jsonschema.Draft202012Validator(definition(kind))
        valid.validate(document)
        for break_it in (
            lambda job: job.update(backoffLimit="1"),
            lambda job: job.update(entrypoint=["bertray"]),
            lambda job: job.update(activeDeadlineSecond=1),
            lambda job: job["rayClusterSpec"].update(rayVersion=2.6),
            lambda job: job["rayClusterSpec"]["authOptions"].update(mode="open"),
            lambda job: job["rayClusterSpec"]["workerGroupSpecs"][0].update(replicas="two"),
            lambda job: job["rayClusterSpec"]["headGroupSpec"]["rayStartParams"].update({"num-cpus": 0}),
        ):
            broken = copy.deepcopy(document)
            break_it(ray_job(broken))
            assert not valid.is_valid(broken)


def test_the_cluster_runs_the_version_of_ray_that_was_tested_behind_a_token():
    for document in of_ray().values():
        cluster = ray_job(document)["rayClusterSpec"]
        assert cluster["rayVersion"] == PINS["ray"]
        assert cluster["authOptions"] == {"mode": "token", "secretName": "bertray-ray-token"}


def test_no_pod_runs_as_root_or_writes_outside_tmp_and_every_one_asks_for_resources():
    specs = [spec for document in ALL.values() for spec in pod_specs(document)]
    assert len(specs) == 10  # seven of bertray, and three that submit
    for spec in specs:
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] == 1000
        for container in spec["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
            assert "memory" in container["resources"]["limits"]
            mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
            assert mounts["tmp"] == "/tmp"
            assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
            volumes = {volume["name"] for volume in spec["volumes"]}
            assert mounts.keys() <= volumes


def test_no_document_holds_a_secret():
    for path in sorted((ROOT / "deploy").rglob("*")):
        if path.is_file() and path.suffix != ".pyc":
            assert not re.search(r"(?i)(secret_?key|password)\s*[:=]\s*\S|AKIA[0-9A-Z]{16}", path.read_text()), path


def test_every_config_that_a_pod_mounts_is_in_a_document_that_the_comment_names():
    """A pod whose ConfigMap is not there waits for ever."""
    maps = {document["metadata"]["name"]: file for (file, kind), document in ALL.items() if kind == "ConfigMap"}
    for (file, kind), document in ALL.items():
        wanted = {
            volume["configMap"]["name"]
            for spec in pod_specs(document)
            for volume in spec["volumes"]
            if "configMap" in volume
        }
        comment = (ROOT / "deploy/kubernetes" / file).read_text(encoding="utf-8").partition("apiVersion")[0]
        assert bool(wanted) == (kind != "ConfigMap")
        for name in wanted:
            assert f"deploy/kubernetes/{maps[name]}" in comment, file


def test_workers_take_the_cpus_of_their_pods():
    config = yaml.safe_load(ALL["nightly-config.yaml", "ConfigMap"]["data"]["nightly.yaml"])["workers"]
    [group] = ray_job(ALL["rayjob-score.yaml", "RayJob"])["rayClusterSpec"]["workerGroupSpecs"]
    [cron] = pod_specs(ALL["cronjob-score.yaml", "CronJob"])[0]["containers"]
    [container] = group["template"]["spec"]["containers"]
    assert config["num_workers"] == group["replicas"]
    for resources in (container["resources"], cron["resources"]):
        assert resources["requests"] == resources["limits"]
        assert int(resources["limits"]["cpu"]) == config["threads"]


def command_of(entrypoint: str) -> list[str]:
    """Words of the bertray command in an entrypoint."""
    _, _, script = shlex.split(entrypoint)
    return shlex.split(re.search(r"bertray (.*?);", script)[1])


def configs() -> list[tuple[str, str, list[str]]]:
    """(ConfigMap's file, verb, settings) of every command that a document runs."""
    found = []
    for (file, kind), document in ALL.items():
        if kind in ("RayJob", "RayCronJob"):
            verb, *words = command_of(ray_job(document)["entrypoint"])
        elif kind == "CronJob":
            [container] = pod_specs(document)[0]["containers"]
            verb, *words = [*container["command"], *container["args"]][1:]
        else:
            continue
        assert words[0] == "-c", file
        found.append((words[1], verb, words[2:]))
    return found


def test_the_commands_and_configs_are_what_bertray_takes(tmp_path):
    maps = {
        f"/etc/bertray/{name}": text
        for (_, kind), document in ALL.items()
        if kind == "ConfigMap"
        for name, text in document["data"].items()
    }
    assert len(configs()) == 4
    for mounted, verb, settings in configs():
        path = tmp_path / "config.yaml"
        path.write_text(maps[mounted])
        load_config(verb, [str(path)], settings)
        assert build_config(
            verb,
            yaml.safe_load(maps[mounted]) | {"output": "o", "input": "i"}
            if verb == "score"
            else {
                **yaml.safe_load(maps[mounted]),
                "output": "o",
            },
        )


def test_only_infrastructure_is_tried_again():
    [rules] = [
        document["spec"]["jobTemplate"]["spec"]["podFailurePolicy"]["rules"]
        for document in ALL.values()
        if document["kind"] == "CronJob"
    ]
    given_up = set(rules[0]["onExitCodes"]["values"])
    assert set(CODE_NAMES) - {0, 130} - given_up == {7}
    for document in of_ray().values():  # a new cluster for any failure, were it more
        assert ray_job(document)["backoffLimit"] == 0


@pytest.mark.parametrize(
    ("codes", "tries", "end"), [([0], 1, 0), ([7, 0], 2, 0), ([7, 7, 7], 3, 7), ([4], 1, 4), ([7, 6], 2, 6)]
)
def test_the_loop_of_an_entrypoint_ends_at_a_code_that_would_come_again(tmp_path, codes, tries, end):
    """A shell of KubeRay's submitter reads it, `ray job submit` quotes it again, a shell of the head runs it."""
    entrypoint = ray_job(ALL["rayjob-score.yaml", "RayJob"])["entrypoint"].replace("sleep 60", "sleep 0")
    submitter = f"printf '%s\\0' {entrypoint} ;"
    words = subprocess.run(["bash", "-ce", "--", submitter], capture_output=True, text=True, check=True).stdout
    entrypoint = shlex.join(words.split("\0")[:-1])
    for name, text in {
        "bertray": f"#!/bin/sh\necho x >> {tmp_path}/tries\nset -- {' '.join(map(str, codes))}\n"
        f"shift $(($(wc -l < {tmp_path}/tries) - 1))\nexit $1\n",
    }.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    ended = subprocess.run(entrypoint, shell=True, env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, check=False)
    assert ended.returncode == end
    assert (tmp_path / "tries").read_text().count("x") == tries


def test_two_nights_at_once_are_held_apart_where_kubernetes_can():
    cron = ALL["cronjob-score.yaml", "CronJob"]["spec"]
    assert (cron["concurrencyPolicy"], cron["timeZone"]) == ("Forbid", "Etc/UTC")
    assert ALL["raycronjob-score.yaml", "RayCronJob"]["spec"]["timeZone"] == "Etc/UTC"
    assert (
        ALL["raycronjob-score.yaml", "RayCronJob"]["spec"]["jobTemplate"] == ALL["rayjob-score.yaml", "RayJob"]["spec"]
    )
