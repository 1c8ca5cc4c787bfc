import os
import subprocess
import sys

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
    monkeypatch.setattr(os, "execv", lambda *call: calls.append((*call, os.environ["GLIBC_TUNABLES"])))
    monkeypatch.setenv("GLIBC_TUNABLES", "to be put back")
    del os.environ["GLIBC_TUNABLES"]
    return calls


def test_a_program_is_started_again_once(started):
    huge_pages.use_huge_pages()
    command = [sys.executable, "-m", "jaxcls.main", "--config", "mine.py"]
    assert started == [(sys.executable, command, "glibc.malloc.hugetlb=1")]
    huge_pages.use_huge_pages()
    assert len(started) == 1


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


@pytest.mark.parametrize("command", [["-m", "jaxcls.main"], ["-c", "from jaxcls.cli import script; script()", "train"]])
def test_the_commands_work_by_it(command):
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    found = subprocess.run([sys.executable, *command, "--help"], capture_output=True, text=True, env=environment)
    assert found.returncode == 0 and "--workdir" in found.stdout and not found.stderr
