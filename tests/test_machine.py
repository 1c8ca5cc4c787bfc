import pytest

from jaxcls import machine


@pytest.mark.parametrize(
    ("kind", "count", "cores", "expected"),
    [
        ("NVIDIA H200", 1, 16, "NVIDIA H200"),
        ("NVIDIA H200", 8, 16, "8 x NVIDIA H200"),
        ("cpu", 4, 2, "2 cores of an AMD EPYC"),  # its devices are parts of one
        ("cpu", 1, 1, "1 core of an AMD EPYC"),
    ],
)
def test_a_machine_by_its_name(monkeypatch, kind, count, cores, expected):
    monkeypatch.setattr(machine, "cores", lambda: cores)
    monkeypatch.setattr(machine, "_processor", lambda: "AMD EPYC")
    assert machine.describe(kind, count) == expected


def test_a_processor_has_a_name_even_where_the_system_tells_none(monkeypatch):
    monkeypatch.setattr(machine.Path, "read_text", lambda path: "processor: 0\n")
    monkeypatch.setattr(machine.platform, "processor", lambda: "")
    assert machine._processor() == machine.platform.machine() != ""
