"""What the Dockerfiles and their locks say, since no test machine can be relied on to build them."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from scripts import load_script

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "ops/docker"
# Dockerfile → the lock of what it installs.
IMAGES = {"Dockerfile": "sweep.lock", "tools.Dockerfile": "tools.lock"}
# Needed to test and to build, and of no use in a pod but to whoever breaks into it.
DEVELOPMENT = {"moto", "mypy", "pytest", "ruff", "hypothesis", "hatchling", "kubernetes-validate"}


def instructions(text: str) -> list[tuple[str, str]]:
    """(INSTRUCTION, the rest) in order, continuation lines joined, comments dropped."""
    lines = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    joined = re.sub(r"\\\n\s*", "", lines)
    words = [line.split(maxsplit=1) for line in joined.splitlines() if line.strip()]
    return [(word.upper(), rest) for word, rest in words]


def copied(rest: str) -> list[str]:
    """The sources of a COPY that come from the build context."""
    words = rest.split()
    if any(w.startswith("--from=") for w in words):
        return []
    return [w for w in words if not w.startswith("--")][:-1]


FOUND = {name: instructions((DOCKER / name).read_text()) for name in IMAGES}


def pins(path: Path) -> dict[tuple[str, str], frozenset[str]]:
    """(package, version and marker) of a lock → its hashes."""
    blocks = re.findall(r"(?m)^([\w.-]+)==(.+?) \\\n((?:    --hash=.+\n)+)", path.read_text())
    return {(name, version): frozenset(re.findall(r"sha256:\w+", hashes)) for name, version, hashes in blocks}


def test_instructions_are_read_across_lines() -> None:
    assert instructions("# a\nRUN one \\\n    two\ncopy --chown=1 a b c/\n") == [
        ("RUN", "one two"),
        ("COPY", "--chown=1 a b c/"),
    ]
    assert copied("--chown=1 a b c/") == ["a", "b"]
    assert copied("--from=build /opt/venv /opt/venv") == []


@pytest.mark.parametrize("name", IMAGES)
def test_ray_version_is_the_locked_one(name: str) -> None:
    (locked,) = re.findall(r"(?m)^ray==(\S+)", (ROOT / "requirements.lock").read_text())
    declared = {rest for word, rest in FOUND[name] if word == "ARG" and rest.startswith("RAY_VERSION")}
    assert declared == {f"RAY_VERSION={locked}"}


@pytest.mark.parametrize("name", IMAGES)
def test_the_image_runs_as_a_numeric_user_that_is_not_root(name: str) -> None:
    last = [rest for word, rest in FOUND[name] if word == "USER"][-1]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", last)
    assert max(i for i, (word, _) in enumerate(FOUND[name]) if word == "USER") > max(
        i for i, (word, _) in enumerate(FOUND[name]) if word == "FROM"
    )


def test_every_copied_path_exists_and_is_in_the_build_context() -> None:
    sources = {source for found in FOUND.values() for word, rest in found if word == "COPY" for source in copied(rest)}
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for source in sources:
        assert (ROOT / source).exists(), source
        assert source in allowed, f".dockerignore keeps {source} from the build"
    assert allowed == sources


@pytest.mark.parametrize(("name", "lock"), IMAGES.items())
def test_packages_come_from_its_lock(name: str, lock: str) -> None:
    assert any(word == "RUN" and f"--require-hashes {lock}" in rest for word, rest in FOUND[name])


def test_the_package_is_built_by_the_locked_backend_which_stays_behind() -> None:
    (build,) = (rest for word, rest in FOUND["Dockerfile"] if word == "RUN" and "--wheel" in rest)
    assert "--constraint requirements.lock hatchling" in build
    assert "--no-build-isolation" in build
    assert "--no-deps /dist/*.whl" in build
    assert [rest for word, rest in FOUND["Dockerfile"] if word == "COPY" and "--from=" in rest] == [
        "--from=build /opt/venv /opt/venv",
        "--from=package /opt/package /opt/venv",
    ]


def test_the_image_of_sweeps_has_all_that_the_package_asks_for() -> None:
    asked = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    names = {re.match(r"[\w.-]+", line)[0].lower() for line in asked}  # type: ignore[index]
    assert not names - {name for name, _ in pins(DOCKER / "sweep.lock")}


@pytest.mark.parametrize("lock", IMAGES.values())
def test_an_image_s_lock_is_a_part_of_the_whole_one_without_what_tests_need(lock: str) -> None:
    """After `make lock` they agree; a pin changed by hand in one of them does not pass."""
    whole, own = pins(ROOT / "requirements.lock"), pins(DOCKER / lock)
    assert len(own) > 100
    assert own.items() <= whole.items()
    assert not {name for name, _ in own} & DEVELOPMENT


def test_the_small_image_has_no_torch_and_all_that_its_pods_run() -> None:
    names = {name for name, _ in pins(DOCKER / "tools.lock")}
    assert {"mlflow", "ray", "psycopg2-binary", "boto3"} <= names
    assert not {name for name in names if name.startswith(("torch", "nvidia", "timm"))}


def test_the_sweeps_are_where_the_job_looks_for_them() -> None:
    (target,) = (
        rest.split()[-1] for word, rest in FOUND["Dockerfile"] if word == "COPY" and rest.startswith("sweeps /")
    )
    assert f"python {target}/vit_components.py" in (ROOT / "k8s/base/rayjob.yaml").read_text()


@pytest.mark.parametrize("image", ["unfreeze", "unfreeze-tools"])
def test_the_bill_of_materials_lists_what_is_locked_for_linux(image: str) -> None:
    script = load_script("docker/sbom")
    listed = {(c["name"], c["version"]) for c in script.bill(image)["components"]}
    locked = {(name, version.split(" ; ")[0]): version for name, version in pins(DOCKER / script.IMAGES[image])}
    assert listed <= locked.keys()
    assert all(" ; " in locked[package] for package in locked.keys() - listed)  # of other platforms
    assert ("ray", re.findall(r"(?m)^ray==(\S+)", (ROOT / "requirements.lock").read_text())[0]) in listed
    assert len({name for name, _ in listed}) == len(listed)  # one version of each
    assert "waitress" not in {name for name, _ in listed}  # MLflow's server on Windows


@pytest.mark.parametrize(("engine", "says_format"), [("docker", False), ("podman", True), ("sudo podman", True)])
def test_podman_is_asked_for_a_format_that_keeps_the_shell(engine: str, says_format: bool) -> None:
    assert any(word == "SHELL" for word, _ in FOUND["Dockerfile"])
    command = ["make", "--dry-run", "images", f"ENGINE={engine}"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert f"{engine} build" in said
    assert ("--format docker" in said) is says_format
