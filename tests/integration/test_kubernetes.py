"""The RayJob that people apply: its fields are those of KubeRay, its pods those of Kubernetes, its command is ours."""

from __future__ import annotations

import copy
import json
import shlex
from collections.abc import Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.architecture.test_documents import sweeper_objection
from tests.support.places import GOLDEN, ROOT

MANIFEST: dict[str, Any] = yaml.safe_load((ROOT / "sweeper" / "clusters" / "rayjob.yaml").read_text(encoding="utf-8"))
SCHEMA = json.loads((GOLDEN / "rayjob.schema.json").read_text(encoding="utf-8"))
CLUSTER = MANIFEST["spec"]["rayClusterSpec"]


def templates(cluster: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        yield group["template"]


def test_it_has_the_fields_of_a_rayjob() -> None:
    jsonschema.Draft202012Validator(SCHEMA).validate(MANIFEST)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "entryPoint"), "sweeper"),
        (("spec", "rayClusterSpec", "headGroupSpec", "rayStartParams", "num-cpus"), 0),
        (("spec", "rayClusterSpec", "authOptions", "mode"), "on"),
        (("spec", "backoffLimit"), "ten"),
    ],
)
def test_a_mistake_in_it_would_be_found(path: tuple[str, ...], value: object) -> None:
    wrong = copy.deepcopy(MANIFEST)
    place = wrong
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(SCHEMA).validate(wrong)


@pytest.mark.real
@pytest.mark.skipif(find_spec("kubernetes_validate") is None, reason="kubernetes-validate is not installed")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_its_pods_are_pods() -> None:
    import kubernetes_validate

    for template in templates(CLUSTER):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, **template}
        kubernetes_validate.validate(pod, kubernetes_validate.latest_version(), strict=True)
        pod["spec"]["container"] = []
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(pod, kubernetes_validate.latest_version(), strict=True)
        del pod["spec"]["container"]


def test_its_command_can_be_typed_and_its_results_lie_where_every_pod_sees_them() -> None:
    program, *arguments = shlex.split(MANIFEST["spec"]["entrypoint"])
    assert program == "sweeper"
    assert sweeper_objection(arguments) is None
    shared = [Path(word) for word in arguments if word.startswith("/")]
    assert len(shared) == 2
    for template in templates(CLUSTER):
        (container,) = template["spec"]["containers"]
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert all(path.is_relative_to(mounts["shared"]) for path in shared)
        assert mounts.keys() == {volume["name"] for volume in template["spec"]["volumes"]}


def test_it_lets_nobody_in_and_its_ray_is_the_pinned_one() -> None:
    assert CLUSTER["authOptions"] == {"mode": "token"}
    assert CLUSTER["rayVersion"] == version("ray")
    images = {template["spec"]["containers"][0]["image"] for template in templates(CLUSTER)}
    assert len(images) == 1, "driver and workers run the same code"
