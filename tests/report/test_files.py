import json
import os
import threading

import pytest

from jaxcls.errors import RunError
from jaxcls.report.files import MetricsFile, write_json


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_resumed_file_has_each_step_once(tmp_path):
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path, resume_step=0)
    for step in (1, 2, 3, 4):
        file.write({"step": step, "loss": step / 2})
        assert lines(path)[-1]["step"] == step  # written through at once
    file.close()
    with open(path, "ab") as half:
        half.write(b'{"step": 5, "lo')
    file = MetricsFile(path, resume_step=2)
    assert lines(path) == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 1.0}]
    assert file.dropped == [{"step": 3, "loss": 1.5}, {"step": 4, "loss": 2.0}]
    file.write({"step": 3, "loss": 9.0})
    file.close()
    assert [record["step"] for record in lines(path)] == [1, 2, 3]


def test_a_half_written_line_goes_even_when_it_would_count(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}')  # no newline: who knows what was to follow
    MetricsFile(path, resume_step=5).close()
    assert path.read_text() == '{"step": 1}\n'


def test_a_late_evaluation_joins_its_step(tmp_path):
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path, resume_step=0)
    file.write({"step": 1, "loss": 2.0})
    file.write({"step": 2, "loss": 1.0})
    file.close()
    file = MetricsFile(path, resume_step=2)
    file.write({"step": 2, "top1": 50.0})
    file.write({"step": 3, "loss": 0.5})
    file.close()
    assert lines(path) == [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0, "top1": 50.0}, {"step": 3, "loss": 0.5}]


def test_a_full_disk_is_said(tmp_path):
    file = MetricsFile(tmp_path / "metrics.jsonl", resume_step=0)
    file._file = open("/dev/full", "wb")  # noqa: SIM115
    with pytest.raises(RunError, match="metrics.jsonl cannot be written .No space left on device.; make room"):
        file.write({"step": 1})


def test_json_files_are_whole_or_not_there(tmp_path):
    write_json(tmp_path / "a.json", {"x": 1})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 1}
    with pytest.raises(RunError, match="cannot be written"):
        write_json(tmp_path / "gone" / "a.json", {})
    assert list(tmp_path.iterdir()) == [tmp_path / "a.json"]


def test_a_link_stays_and_what_it_leads_to_is_replaced(tmp_path):
    (tmp_path / "a.json").write_text("old")
    (tmp_path / "link.json").symlink_to("a.json")
    write_json(tmp_path / "link.json", {"x": 1})
    assert (tmp_path / "link.json").is_symlink() and json.loads((tmp_path / "a.json").read_text()) == {"x": 1}


def test_what_is_no_file_is_written_to_as_it_is(tmp_path):
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    write_json(pipe, {"x": 1})
    reader.join(10)
    assert json.loads(read[0]) == {"x": 1} and pipe.is_fifo() and list(tmp_path.iterdir()) == [pipe]
