"""A rendered pod template as the pod that podman plays: every value filled in, every volume its own.

What Kubernetes does before a container starts is done here by its rules: variables of secrets and of the pod's own
fields, `$(NAME)` in commands, claims of a StatefulSet. What only a scheduler or a kubelet can do is left out by name.
"""

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from podman import RehearsalError

Object = dict[str, Any]
Named = Mapping[str, Mapping[str, str]]  # secrets or config maps: name → key → value

# Of a pod's and a container's specification, what podman does as Kubernetes would.
_POD_FIELDS = {"containers", "initContainers", "securityContext", "volumes"}
_CONTAINER_FIELDS = {"args", "command", "env", "envFrom", "image", "name", "resources", "securityContext"} | {
    "volumeMounts",
    "workingDir",
}
# In Kubernetes a note for people; podman would bind them on this machine, where another Ray may have them.
_NOTES = {"ports"}
# Asked by the rehearsal itself, in podman's place.
PROBES = ("startupProbe", "readinessProbe", "livenessProbe")


@dataclass(frozen=True, slots=True)
class Volume:
    """One to make before the pod is played: in memory where it has a size, else a folder with a config map's files."""

    name: str
    path: Path
    memory_bytes: int | None = None
    files: Mapping[str, str] | None = None
    is_claim: bool = False  # it outlives the pod


@dataclass(frozen=True, slots=True)
class Pod:
    name: str
    manifest: Object
    volumes: tuple[Volume, ...]
    left_out: frozenset[str]  # fields that are Kubernetes' alone


def to_pod(
    template: Object,
    *,
    name: str,
    namespace: str,
    secrets: Named,
    folder: Path,
    config_maps: Named | None = None,
    claims: Sequence[Object] = (),
) -> Pod:
    """``folder``: where volumes are; ``claims``: the volumeClaimTemplates of a StatefulSet, whose first pod this is.

    Raises:
        RehearsalError: a secret, a key or a kind of volume that is not there.
    """
    spec = copy.deepcopy(template["spec"])
    metadata = {"name": name, "namespace": namespace, "labels": template.get("metadata", {}).get("labels", {})}
    left_out = {key for key in spec if key not in _POD_FIELDS}
    kept = {key: value for key, value in spec.items() if key in _POD_FIELDS}
    for group in ("initContainers", "containers"):
        if group in spec:
            left_out |= {key for one in spec[group] for key in one if key not in {*_CONTAINER_FIELDS, *PROBES, *_NOTES}}
            kept[group] = [_container(one, metadata, secrets) for one in spec[group]]
    kept["hostname"] = name
    # Podman would start an init container that has ended well again; and what ends unasked shall be seen.
    kept["restartPolicy"] = "Never"
    volumes = [*spec.get("volumes", []), *({"name": c["metadata"]["name"], **_CLAIM} for c in claims)]
    made = [_volume(volume, name, folder, config_maps or {}) for volume in volumes]
    # Folders are mounted as they are, as in Kubernetes; podman's own volumes begin with what the image has there.
    kept["volumes"] = [
        {"name": volume["name"], "hostPath": {"path": str(own.path), "type": "Directory"}}
        for volume, own in zip(volumes, made, strict=True)
    ]
    manifest = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": kept}
    return Pod(name=name, manifest=manifest, volumes=tuple(made), left_out=frozenset(left_out))


_CLAIM: Object = {"persistentVolumeClaim": {}}


def _volume(volume: Object, pod: str, folder: Path, config_maps: Named) -> Volume:
    name = f"{volume['name']}-{pod}"  # a claim's, as a StatefulSet names it
    match volume:
        case {"persistentVolumeClaim": _}:
            return Volume(name, folder / name, is_claim=True)
        case {"configMap": {"name": of}} if of in config_maps:
            return Volume(name, folder / name, files=config_maps[of])
        case {"emptyDir": {"medium": "Memory", "sizeLimit": size}}:
            return Volume(name, folder / name, memory_bytes=to_bytes(size))
        case {"emptyDir": _}:
            return Volume(name, folder / name)
    kind = next(key for key in volume if key != "name")
    raise RehearsalError(f"volume {volume['name']!r} of pod {pod!r} is a {kind}, which the rehearsal cannot make")


def _container(container: Object, metadata: Object, secrets: Named) -> Object:
    kept = {key: value for key, value in container.items() if key in _CONTAINER_FIELDS and key != "envFrom"}
    variables = environment(container, metadata, secrets)
    kept["env"] = [{"name": name, "value": value} for name, value in variables.items()]
    for key in ("command", "args"):
        if key in kept:
            kept[key] = [expand(word, variables) for word in kept[key]]
    kept["imagePullPolicy"] = "Never"
    return kept


def environment(container: Object, metadata: Object, secrets: Named) -> dict[str, str]:
    """What the container finds: envFrom first, then env in order, of which a later one may name an earlier."""
    found: dict[str, str] = {}
    for source in container.get("envFrom", []):
        prefix = source.get("prefix", "")
        found |= {prefix + key: value for key, value in _secret(secrets, source["secretRef"]["name"]).items()}
    for variable in container.get("env", []):
        name = variable["name"]
        if "valueFrom" in variable:
            found[name] = _look_up(variable["valueFrom"], metadata, secrets)
        else:
            found[name] = expand(variable.get("value", ""), found)
    return found


def _look_up(source: Object, metadata: Object, secrets: Named) -> str:
    if "secretKeyRef" in source:
        reference = source["secretKeyRef"]
        secret = _secret(secrets, reference["name"])
        if reference["key"] not in secret:
            raise RehearsalError(f"secret {reference['name']!r} has no key {reference['key']!r}")
        return secret[reference["key"]]
    path = source.get("fieldRef", {}).get("fieldPath", "")
    if label := re.fullmatch(r"metadata\.labels\['(.+)'\]", path):
        return metadata["labels"][label[1]]
    if path in ("metadata.name", "metadata.namespace"):
        return metadata[path.removeprefix("metadata.")]
    raise RehearsalError(f"the rehearsal cannot look up {source}")


def _secret(secrets: Named, name: str) -> Mapping[str, str]:
    if name not in secrets:
        raise RehearsalError(f"there is no secret {name!r}; the rehearsal makes {', '.join(sorted(secrets))}")
    return secrets[name]


def expand(text: str, variables: Mapping[str, str]) -> str:
    """`$(NAME)` by its value, `$$` by `$`; an unknown name stays as it is."""

    def value(match: re.Match[str]) -> str:
        return "$" if match[0] == "$$" else variables.get(match[1], match[0])

    return re.sub(r"\$\$|\$\(([\w.-]+)\)", value, text)


_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def to_bytes(quantity: str) -> int:
    """A quantity of memory, such as 3Gi."""
    match = re.fullmatch(r"([\d.]+)(\w*)", str(quantity))
    if match is None or match[2] not in _UNITS:
        raise RehearsalError(f"{quantity!r} is no quantity of memory")
    return int(float(match[1]) * _UNITS[match[2]])


def to_cpus(quantity: str) -> int:
    """A quantity of CPU in whole cores, rounded up as KubeRay does: 500m is 1."""
    text = str(quantity)
    milli = int(text.removesuffix("m")) if text.endswith("m") else round(float(text) * 1000)
    return -(-milli // 1000)


def images(objects: list[Object]) -> list[str]:
    """Every container's image, each once."""
    return sorted({container["image"] for container in _containers(objects)})


def _containers(node: Any) -> Iterator[Object]:
    if isinstance(node, list):
        for item in node:
            yield from _containers(item)
    elif isinstance(node, dict):
        for key, value in node.items():
            if key in ("containers", "initContainers"):
                yield from value
            else:
                yield from _containers(value)
