import os
import subprocess
import sys

import pytest

PROGRAM = "import jax; from jaxcls import runtime; runtime.configure('fp32'); print(jax.jit(lambda x: x + 1)(1))"


def run(cache):
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache)}
    found = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=environment)
    assert found.stdout == "2\n"
    return found.stderr


def test_a_cache_that_is_damaged_is_as_none(tmp_path):
    assert run(tmp_path) == ""
    kept = [path for path in tmp_path.iterdir() if path.name.endswith("-cache")]
    for path in kept:
        path.write_bytes(b"garbage")
    assert kept and run(tmp_path) == ""


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_cache_that_cannot_be_is_one_line(tmp_path, place):
    (tmp_path / "file").write_text("")
    (line,) = run(tmp_path / place).splitlines()
    assert line.startswith(f"jaxcls: compiled programs cannot be kept in {tmp_path / place} (")


def test_no_cache_is_quiet():
    assert run("") == ""
