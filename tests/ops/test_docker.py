"""What the Dockerfile says, since no test machine can be relied on to build it."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "ops/docker/Dockerfile"


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


FOUND = instructions(DOCKERFILE.read_text())


def test_instructions_are_read_across_lines() -> None:
    assert instructions("# a\nRUN one \\\n    two\ncopy --chown=1 a b c/\n") == [
        ("RUN", "one two"),
        ("COPY", "--chown=1 a b c/"),
    ]
    assert copied("--chown=1 a b c/") == ["a", "b"]
    assert copied("--from=build /opt/venv /opt/venv") == []


def test_ray_version_is_the_locked_one() -> None:
    (locked,) = re.findall(r"(?m)^ray==(\S+)", (ROOT / "requirements.lock").read_text())
    declared = {rest for word, rest in FOUND if word == "ARG" and rest.startswith("RAY_VERSION")}
    assert declared == {f"RAY_VERSION={locked}"}


def test_the_image_runs_as_a_numeric_user_that_is_not_root() -> None:
    last = [rest for word, rest in FOUND if word == "USER"][-1]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", last)
    assert max(i for i, (word, _) in enumerate(FOUND) if word == "USER") > max(
        i for i, (word, _) in enumerate(FOUND) if word == "FROM"
    )


def test_every_copied_path_exists_and_is_in_the_build_context() -> None:
    sources = [source for word, rest in FOUND if word == "COPY" for source in copied(rest)]
    assert sources
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for source in sources:
        assert (ROOT / source).exists(), source
        assert source in allowed, f".dockerignore keeps {source} from the build"
    assert allowed == set(sources)


@pytest.mark.parametrize("flags", ["--require-hashes", "--no-deps --no-build-isolation"])
def test_packages_come_from_the_lock(flags: str) -> None:
    assert [rest for word, rest in FOUND if word == "RUN" and "uv pip" in rest and flags in rest]


def test_the_sweeps_are_where_the_job_looks_for_them() -> None:
    (target,) = (rest.split()[-1] for word, rest in FOUND if word == "COPY" and rest.startswith("sweeps /"))
    assert f"python {target}/vit_components.py" in (ROOT / "k8s/base/rayjob.yaml").read_text()
