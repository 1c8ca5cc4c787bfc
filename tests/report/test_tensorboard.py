import errno
import struct
import subprocess
import sys

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from jaxcls.report.tensorboard import EventsFile


def events(directory):
    """The events of all files, in the order in which they were begun."""
    found = []
    for path in sorted(directory.iterdir(), key=lambda path: path.stat().st_mtime_ns):
        content = path.read_bytes()
        while content:  # length, its checksum, the event, its checksum
            (length,) = struct.unpack("<Q", content[:8])
            found.append(Event.FromString(content[12 : 12 + length]))
            content = content[16 + length :]
    return found


def scalars(event):
    return {value.tag: value.simple_value for value in event.summary.value}


def test_a_run_that_was_resumed(tmp_path):
    for resumed, steps in ((0, (1, 2, 3)), (2, (3,))):
        file = EventsFile(tmp_path / "tensorboard", resume_step=resumed, warn=pytest.fail)
        for step in steps:
            file.write({"step": step, "train.loss": 1 / 2**step, "train.lr": float("nan"), "note": "no number"})
        file.close()
    version, start, *first, _, again, last = events(tmp_path / "tensorboard")
    assert version.file_version == "brain.Event:2" and (start.step, again.step) == (1, 3)
    assert start.session_log.status == again.session_log.status == SessionLog.START
    assert [(event.step, scalars(event)["train.loss"]) for event in [*first, last]] == [
        (1, 0.5),
        (2, 0.25),
        (3, 0.125),
        (3, 0.125),
    ]
    assert scalars(last).keys() == {"train.loss", "train.lr"}


def test_what_cannot_be_written_is_told_once(tmp_path, monkeypatch):
    told = []
    file = EventsFile(tmp_path / "tensorboard", resume_step=0, warn=told.append)

    def full(event):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(file._file, "write_event", full)
    for step in (1, 2):
        file.write({"step": step, "train.loss": 1.0})
    file.close()
    (tmp_path / "file").write_text("")
    EventsFile(tmp_path / "file", resume_step=0, warn=told.append).write({"step": 1, "train.loss": 1.0})
    assert [text.partition(" cannot be written (")[2].partition(")")[0] for text in told] == [
        "No space left on device",
        "File exists",
    ]


def test_torch_is_not_imported():
    program = (
        "import sys, pathlib, tempfile; from jaxcls.report.tensorboard import EventsFile\n"
        "EventsFile(pathlib.Path(tempfile.mkdtemp()), resume_step=0, warn=print).close()\n"
        "print('torch' in sys.modules, 'tensorflow' in sys.modules); import torch; print(torch.ones(1).item())"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout == "False False\n1.0\n"
