"""Runs in processes of their own that are stopped and killed, and resumed by the same command."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from jaxcls import cli
from tests.train.runs import lines, make_folder, same_state

LAST = 36


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    folder = make_folder(tmp_path_factory.mktemp("images"))
    settings = {
        "model.name": "tiny",
        "data.path": folder,
        "data.image_size": 32,
        "train.batch_size": 8,
        "train.epochs": LAST / 3,
        "checkpoint.every_steps": 2,  # in mid-epoch, too: an epoch has three steps
    }
    flags = [f"--config.{key}={value}" for key, value in settings.items()]
    return [sys.executable, "-m", "tests.tiny_main", "--config", "configs/resnet50.py", *flags]


def start(command, workdir, **options):
    command = [*command, "--workdir", str(workdir)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ, **options)


@pytest.fixture(scope="module")
def whole(command, tmp_path_factory):
    """A run that nothing happens to."""
    workdir = tmp_path_factory.mktemp("whole")
    process = start(command, workdir)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0, out
    return workdir


def wait_until(process, condition):
    while process.poll() is None and not condition():
        time.sleep(0.002)
    assert process.poll() is None, process.communicate()[0]


def steps_done(workdir):
    path = workdir / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def saving(workdir):
    return any((workdir / "checkpoints").glob("*tmp*"))


def check(workdir, whole):
    assert same_state(workdir, whole, LAST)
    assert [record["step"] for record in lines(workdir)] == list(range(1, LAST + 1))
    assert [record["train.loss"] for record in lines(workdir)] == [record["train.loss"] for record in lines(whole)]
    ours, theirs = (json.loads((place / "summary.json").read_text()) for place in (workdir, whole))
    for name in ("eval_digest", "final_top1", "best_top1"):
        assert ours[name] == theirs[name]


@pytest.mark.long
def test_killed_at_any_moment_a_run_ends_with_the_same_weights(command, whole, tmp_path):
    conditions = [
        lambda: steps_done(tmp_path) >= 4,  # in mid-epoch
        lambda: steps_done(tmp_path) >= 10 and saving(tmp_path),  # inside an asynchronous save
        lambda: steps_done(tmp_path) >= 30 and saving(tmp_path),
    ]
    for condition in conditions:
        process = start(command, tmp_path)
        wait_until(process, condition)
        process.kill()
        process.communicate()
    process = start(command, tmp_path)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0 and "Resuming at step" in out
    check(tmp_path, whole)


@pytest.mark.long
def test_told_to_stop_a_run_saves_and_exits_75(command, whole, tmp_path):
    for number, steps in ((signal.SIGTERM, 7), (signal.SIGINT, 16)):
        process = start(command, tmp_path)
        wait_until(process, lambda steps=steps: steps_done(tmp_path) >= steps)
        process.send_signal(number)
        out, _ = process.communicate(timeout=60)
        assert process.returncode == 75, out
        assert f"{number.name}: saving at the next step" in out and f"{number.name}: saved at step" in out
        assert "Traceback" not in out
    process = start(command, tmp_path)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0, out
    check(tmp_path, whole)


def test_ctrl_c_reaches_workers_too_and_they_stay_calm(command, tmp_path):
    process = start([*command, "--config.data.workers=2"], tmp_path, start_new_session=True)
    wait_until(process, lambda: steps_done(tmp_path) >= 5)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 75 and "Traceback" not in out, out


def test_told_twice_a_run_stops_at_once(command, tmp_path):
    process = start(command, tmp_path)
    wait_until(process, lambda: steps_done(tmp_path) >= 1)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode in (128 + signal.SIGINT, 128 + signal.SIGTERM, 75)


def run(*arguments, **environment):
    found = subprocess.run(
        [sys.executable, "-m", "jaxcls.main", *arguments], capture_output=True, text=True, env=os.environ | environment
    )
    return found.returncode, found.stdout + found.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--config", "configs/nothing.py"], 2, "there is no config file configs/nothing.py"),
        (["--config", "configs/resnet50.py", "--config.train.batchsize=3"], 2, "did you mean train.batch_size?"),
        (["--config", "configs/digits.py:resnet51"], 2, "no network is called 'resnet51'; did you mean 'resnet50'?"),
        (["--config", "configs/resnet50.py", "--config.data.path=/no/such/place"], 3, "no data directory /no/such/place"),
        (["--config", "configs/resnet50.py", "--mode", "evaluate"], 4, "holds no checkpoint to evaluate"),
    ],
)
def test_mistakes_are_one_line_and_an_exit_code(tmp_path, arguments, code, message):
    found, output = run(*arguments, "--workdir", str(tmp_path))
    *_, last = output.splitlines()
    assert found == code and last.startswith("jaxcls: ") and message in last
    assert "Traceback" not in output


def test_several_processes_do_not_fall_back_to_the_digits(tmp_path):
    code, output = run("--config", "configs/resnet50.py", "--workdir", str(tmp_path), SLURM_STEP_NUM_TASKS="4")
    assert code == 2 and "no data is configured for a run of several processes" in output


def test_the_console_command():
    def call(*arguments):
        program = "import sys; from jaxcls.cli import main; sys.exit(main())"
        return subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True)

    found = call("train", "--config", "nothing.py")
    assert found.returncode == 2 and "there is no config file nothing.py" in found.stderr
    assert call("trian").returncode == 2
    assert call("--help").returncode == 0


@pytest.mark.parametrize("module", ["jaxcls", "jaxcls.cli"])
def test_the_package_is_the_command(module):
    found = subprocess.run([sys.executable, "-m", module, "trian"], capture_output=True, text=True)
    assert found.returncode == 2 and found.stderr.startswith("usage: jaxcls")


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_before_the_run_begins(tmp_path, name):
    """In the slow imports; here, before them, the process waits to be told."""
    program = "import time; from jaxcls import main; main.exit_on_signals(); print('ready', flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(getattr(signal, name))
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (75, f"jaxcls: {name} before the run began\n")


@pytest.mark.parametrize(
    ("name", "value"), [("JAX_PLATFORMS", "cuda"), ("JAX_PLATFORMS", "foo"), ("JAX_DEFAULT_MATMUL_PRECISION", "zzz")]
)
def test_settings_that_jax_does_not_start_with(tmp_path, name, value):
    code, output = run("--config", "configs/resnet50.py", "--workdir", str(tmp_path), **{name: value})
    line = output.splitlines()[-1]
    assert code == 2 and line.startswith("jaxcls: JAX does not start with ") and f"{name}={value}" in line


def test_ctrl_c_while_a_command_is_imported(monkeypatch, capsys):
    def interrupt(name):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.importlib, "import_module", interrupt)
    monkeypatch.setattr(sys, "argv", ["jaxcls", "classify"])
    assert cli.main() == 75 and capsys.readouterr().err == "jaxcls: interrupted\n"


def test_help():
    code, output = run("--help")
    assert code == 0 and "--config FILE[:ARG]" in output and "configs/resnet50.py" in output


@pytest.mark.long
def test_a_disk_that_fills_up_loses_nothing(command, whole, tmp_path):
    """The files of a process are limited in size, which a checkpoint runs into as it would into a full disk."""
    process = start(command, tmp_path)
    wait_until(process, lambda: steps_done(tmp_path) >= 5)
    process.kill()
    process.communicate()
    limited = ["bash", "-c", 'ulimit -f 40; exec "$@"', "-", *command, "--workdir", str(tmp_path)]
    found = subprocess.run(limited, capture_output=True, text=True, timeout=120, env=os.environ)
    assert found.returncode == 5, found.stdout + found.stderr
    *_, last = (found.stdout + found.stderr).splitlines()
    assert last.startswith("jaxcls: ") and "(File too large; " in last and "run the same command to resume" in last
    assert "Traceback" not in found.stdout + found.stderr
    process = start(command, tmp_path)
    process.communicate(timeout=120)
    assert process.returncode == 0
    check(tmp_path, whole)


@pytest.mark.parametrize("command", ["benchmark layers --batch 1 --image-size 32", "summary --model resnet50"])
def test_a_platform_that_is_missed_inside_of_a_transformation(command):
    environment = os.environ | {"JAX_PLATFORMS": "foo"}
    found = subprocess.run(
        [sys.executable, "-m", "jaxcls", *command.split()], capture_output=True, text=True, env=environment
    )
    (line,) = found.stderr.splitlines()
    assert found.returncode == 2 and line.startswith("jaxcls: JAX does not start with ") and "JAX_PLATFORMS=foo" in line
