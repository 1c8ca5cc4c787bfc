import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxcls import huge_pages


@pytest.fixture
def started(monkeypatch, tmp_path):
    """How programs would have been started again, on a system with glibc whose kernel gives large pages to who asks."""
    kernel, calls = tmp_path / "enabled", []
    kernel.write_text("always [madvise] never\n")
    monkeypatch.setattr(huge_pages, "_KERNEL", kernel)
    monkeypatch.setattr(huge_pages.platform, "libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "jaxcls.main", "--config", "mine.py"])
    monkeypatch.setattr(os, "execve", lambda path, command, environment: calls.append((path, command, environment)))
    monkeypatch.setenv("GLIBC_TUNABLES", "to be put back")
    del os.environ["GLIBC_TUNABLES"]
    return calls


def test_a_program_is_started_again_once(started):
    huge_pages.use_huge_pages()
    command = [sys.executable, "-m", "jaxcls.main", "--config", "mine.py"]
    ((path, again, environment),) = started
    assert (path, again) == (sys.executable, command)
    assert environment == os.environ | {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


def test_the_benchmark_is_started_again_as_a_module_too(started, monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "jaxcls.benchmark", "infer", "--batch", "8"])
    huge_pages.use_huge_pages()
    assert started[0][1][1:] == ["-m", "jaxcls.benchmark", "infer", "--batch", "8"]


def test_a_script_of_another_name_starts_again_if_it_says_so(started, monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", ["python", "scripts/bench_vs_torch.py", "--train", "8"])
    monkeypatch.setattr(sys, "argv", ["scripts/bench_vs_torch.py"])
    huge_pages.use_huge_pages()
    assert not started
    huge_pages.use_huge_pages(ours=True)
    assert started[0][1] == [sys.executable, "scripts/bench_vs_torch.py", "--train", "8"]


def test_what_the_user_has_set_stays(started, monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.check=0")
    huge_pages.use_huge_pages()
    assert not started and os.environ["GLIBC_TUNABLES"] == "glibc.malloc.check=0"


@pytest.mark.parametrize("enabled", ["[always] madvise never", "always madvise [never]", None])
def test_nothing_where_it_would_do_nothing(started, monkeypatch, enabled):
    if enabled is None:
        huge_pages._KERNEL.unlink()
    else:
        huge_pages._KERNEL.write_text(enabled)
    huge_pages.use_huge_pages()
    monkeypatch.setattr(huge_pages.platform, "libc_ver", lambda: ("", ""))  # as on macOS and with musl
    huge_pages._KERNEL.write_text("always [madvise] never")
    huge_pages.use_huge_pages()
    assert not started


@pytest.mark.parametrize(
    "command",
    [
        ["python", "mine.py", "-m", "jaxcls.main.py"],
        ["python", "-"],
        ["python", "-c", "import jaxcls"],
        ["python", "-m", "pdb", "mine.py"],
        ["python", "mine.py", "--module", "-m", "jaxcls.main"],
    ],
)
def test_a_program_that_only_uses_jaxcls_is_left_alone(started, monkeypatch, command):
    monkeypatch.setattr(sys, "orig_argv", command)
    huge_pages.use_huge_pages()
    assert not started


def test_where_it_cannot_be_started_again_it_goes_on(started, monkeypatch):
    def fail(*arguments):
        raise OSError("no such file")

    monkeypatch.setattr(os, "execve", fail)
    huge_pages.use_huge_pages()
    monkeypatch.setattr(sys, "executable", "")  # Python does not know where it is
    huge_pages.use_huge_pages()
    assert "GLIBC_TUNABLES" not in os.environ


SCRIPT = str(Path(sys.executable).with_name("jaxcls"))


@pytest.mark.parametrize("command", [[sys.executable, "-m", "jaxcls.main"], [SCRIPT, "train"]])
def test_the_commands_work_by_it(command):
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    found = subprocess.run([*command, "--help"], capture_output=True, text=True, env=environment)
    assert found.returncode == 0 and "--workdir" in found.stdout and not found.stderr
