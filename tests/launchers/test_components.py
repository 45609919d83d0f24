"""The TorchX components, through TorchX's own linter and command line."""

from __future__ import annotations

import inspect
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from torch.distributed.run import parse_args
from torchx.components.component_test_base import ComponentTestCase

from prectr_torchrec.launchers import components

TORCHX = [str(Path(sys.executable).parent / "torchx")]
JOB = ["--config", "prectr_v1", "--data", "/data", "--run", "/run"]


def torchx(*arguments: str, cwd: Path) -> str:
    done = subprocess.run([*TORCHX, *arguments], capture_output=True, text=True, cwd=cwd, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def dryrun(scheduler: str, options: str, *arguments: str, cwd: Path) -> str:
    """What the scheduler would be asked for."""
    settings = ["-cfg", options] if options else []
    output = torchx("run", "--workspace=", "-s", scheduler, *settings, "--dryrun", *arguments, cwd=cwd)
    return output.split("=== SCHEDULER REQUEST ===")[1]


def torchrun_arguments(command: str) -> list[str]:
    """What torchrun's own parser hands to the module."""
    return parse_args(shlex.split(command.split("torchrun ", 1)[1])).training_script_args


class TestLinter(ComponentTestCase):
    def test_train_is_a_valid_component(self) -> None:
        self.validate(components, "train")

    def test_teach_is_a_valid_component(self) -> None:
        self.validate(components, "teach")

    def test_distill_is_a_valid_component(self) -> None:
        self.validate(components, "distill")

    def test_evaluate_is_a_valid_component(self) -> None:
        self.validate(components, "evaluate")


def test_builtins_stay_visible_beside_ours(tmp_path: Path) -> None:
    listed = torchx("builtins", cwd=tmp_path)
    assert all(
        name in listed for name in ("prectr.train", "prectr.evaluate", "prectr.teach", "prectr.distill", "dist.ddp", "utils.echo")
    )


def test_help_documents_the_arguments(tmp_path: Path) -> None:
    text = torchx("run", "prectr.train", "--help", cwd=tmp_path)
    assert "a retried job resumes from its run directory" in text
    assert "--mem_mb" in text


def test_import_is_light() -> None:
    code = "import sys, prectr_torchrec.launchers.components; assert not {'torch', 'pyarrow', 'pydantic'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_local_run_starts_two_ranks(tmp_path: Path) -> None:
    request = dryrun("local_cwd", "", "prectr.train", "-j", "1x2", *JOB, cwd=tmp_path)
    request = " ".join(part.strip(" '") for part in request.splitlines())
    assert (
        "exec python -m prectr_torchrec.distributed.launch --nproc 2 --max-restarts 0 prectr_torchrec.training.rank --" in request
    )


def test_torchrun_hands_every_argument_to_the_trainer() -> None:
    app = components.train("--set=train.seed=2", "--set=a.b=[1, 2]", config="c", data="d", run="r", j="2x2")
    expected = ["--config", "c", "--data", "d", "--run", "r", "--set=train.seed=2", "--set=a.b=[1, 2]"]
    assert torchrun_arguments(app.roles[0].args[-1]) == expected


def test_torchrun_hands_every_argument_to_the_evaluation() -> None:
    app = components.evaluate("--oracle", "o", run="r", data="d", j="2x2")
    assert torchrun_arguments(app.roles[0].args[-1]) == ["--run", "r", "--data", "d", "--oracle", "o"]


def test_torchrun_hands_every_argument_to_the_distillation() -> None:
    app = components.distill("--teacher-scores", "s", config="c", pairs="p", out="o", j="2x2")
    given = ["--config", "c", "--pairs", "p", "--out", "o", "--teacher-scores", "s"]
    assert torchrun_arguments(app.roles[0].args[-1]) == given and "prectr_torchrec.text.distill" in app.roles[0].args[-1]


def test_torchrun_hands_every_argument_to_the_teacher() -> None:
    app = components.teach("--hidden", teacher="t", pairs="p", out="o", j="2x2")
    assert torchrun_arguments(app.roles[0].args[-1]) == ["--teacher", "t", "--pairs", "p", "--out", "o", "--hidden"]


@pytest.mark.parametrize("component", ["train", "evaluate", "teach", "distill"])
def test_ranks_of_one_node_are_started_without_a_port(component: str) -> None:
    paths = {"config": "c", "data": "d", "run": "r", "teacher": "t", "pairs": "p", "out": "o"}
    make = getattr(components, component)
    wanted = {name: paths[name] for name in inspect.signature(make).parameters if name in paths}
    command = make("--set=a.b=[1, 2]", **wanted, j="1x2", max_restarts=3).roles[0].args[-1]
    words = shlex.split(command)
    assert "torchrun" not in command
    assert words[:8] == "exec python -m prectr_torchrec.distributed.launch --nproc 2 --max-restarts 3".split()
    assert words[9:] == ["--", *(word for name, value in wanted.items() for word in (f"--{name}", value)), "--set=a.b=[1, 2]"]


def test_values_with_a_comma_stay_whole_on_slurm(tmp_path: Path) -> None:
    given = ["--env", "GPUS=0,1,B=2", "--max_restarts", "0", *JOB]
    for nodes in ("1x2", "2x2"):
        request = dryrun("slurm", "", "prectr.train", "-j", nodes, *given, cwd=tmp_path)
        assert "GPUS=0,1" not in request.split("--export=")[1].split()[0]
        assert "export GPUS=" in request and "0,1" in request and "B=2" in request


def test_slurm_gets_resources_retries_and_arguments(tmp_path: Path) -> None:
    sizes = ["--cpu", "32", "--gpu", "8", "--mem_mb", "500000", "--max_retries", "5"]
    request = dryrun("slurm", "partition=gpu", "prectr.train", "-j", "2x8", *sizes, *JOB, cwd=tmp_path)
    for part in (
        "--cpus-per-task=32",
        "--mem=500000",
        "--gpus-per-task=8",
        "--partition=gpu",
        "--requeue",
        "TORCHX_MAX_RETRIES=5",
    ):
        assert part in request
    assert "--nnodes 2 --nproc_per_node 8" in request
    assert "-m prectr_torchrec.training.rank -- --config prectr_v1 --data /data --run /run" in request
    assert "OMP_NUM_THREADS=4,OMP_WAIT_POLICY=PASSIVE" in request


def test_kubernetes_gets_resources_retries_mounts_and_image(tmp_path: Path) -> None:
    sizes = ["--cpu", "16", "--gpu", "4", "--mem_mb", "64000", "--max_retries", "2", "--image", "registry/prectr:1"]
    mount = ["--mounts", "type=bind,src=/mnt,dst=/data"]
    run = ["prectr.evaluate", "-j", "2x4", *sizes, *mount, "--run", "/run", "--data", "/data", "--", "--oracle", "/o.parquet"]
    job = yaml.safe_load(dryrun("kubernetes", "queue=default", *run, cwd=tmp_path))
    assert job["spec"]["maxRetry"] == 2
    assert len(job["spec"]["tasks"]) == 2
    (container,) = job["spec"]["tasks"][0]["template"]["spec"]["containers"]
    assert container["image"] == "registry/prectr:1"
    assert container["resources"]["limits"] == {"cpu": "16000m", "memory": "64000M", "nvidia.com/gpu": "4"}
    assert "/data" in [mount["mountPath"] for mount in container["volumeMounts"]]
    assert "-m prectr_torchrec.evaluation.evaluate -- --run /run --data /data --oracle /o.parquet" in container["command"][-1]


MOUNTS = ["--mounts", "type=volume,src=shared,dst=/mnt/shared"]
JOBS = {
    "train": ["--config", "prectr_v2", "--data", "/mnt/shared/data", "--run", "/mnt/shared/run"],
    "evaluate": ["--run", "/mnt/shared/run", "--data", "/mnt/shared/data"],
    "teach": ["--teacher", "/mnt/shared/llm", "--pairs", "/mnt/shared/pairs.parquet", "--out", "/mnt/shared/scores"],
    "distill": ["--config", "student", "--pairs", "/mnt/shared/pairs.parquet", "--out", "/mnt/shared/student"],
}
MODULES = {"train": "training.rank", "evaluate": "evaluation.evaluate", "teach": "text.teach", "distill": "text.distill"}


@pytest.mark.parametrize("component", JOBS)
def test_slurm_runs_every_component_on_several_hosts(component: str, tmp_path: Path) -> None:
    sizes = ["-j", "2x8", "--gpu", "8", "--max_restarts", "2", "--env", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT=300"]
    request = dryrun("slurm", "partition=gpu,time=24:00:00", f"prectr.{component}", *sizes, *JOBS[component], cwd=tmp_path)
    assert request.count("#SBATCH --job-name") == 2 and request.count("--time=24:00:00") == 2
    commands = [line for line in request.splitlines() if "exec torchrun" in line]
    assert len(commands) == 2
    for host, line in enumerate(commands):
        assert "--rdzv_endpoint ${SLURM_JOB_NODELIST_HET_GROUP_0:=localhost}:29500" in line
        assert "--max_restarts 2 --signals_to_handle SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1" in line
        assert f"-m prectr_torchrec.{MODULES[component]} -- {' '.join(JOBS[component])}" in line
        assert f'--error=slurm-"$SLURM_JOB_ID"-{component}-{host}.err' in line
        assert "TORCH_ELASTIC_SHUTDOWN_TIMEOUT=300" in line


@pytest.mark.parametrize("component", JOBS)
def test_kubernetes_runs_every_component_on_several_hosts(component: str, tmp_path: Path) -> None:
    sizes = ["-j", "1:2x4", "--gpu", "4", "--image", "registry/prectr:1", "--env", "A=1", "--max_retries", "4"]
    request = dryrun("kubernetes", "queue=ranking", f"prectr.{component}", *sizes, *MOUNTS, *JOBS[component], cwd=tmp_path)
    job = yaml.safe_load(request)["spec"]
    assert job["queue"] == "ranking" and job["maxRetry"] == 4
    assert [task["minAvailable"] for task in job["tasks"]] == [1, 0]
    assert all({"event": "PodEvicted", "action": "RestartJob"} in task["policies"] for task in job["tasks"])
    for host, task in enumerate(job["tasks"]):
        pod = task["template"]["spec"]
        (container,) = pod["containers"]
        assert container["command"][-1].startswith("exec torchrun ")
        meeting = "TORCHX_RANK0_HOST" if host == 0 else f"VC_{component.upper()}_0_HOSTS"
        assert f"--rdzv_endpoint ${{{meeting}:=localhost}}:29500" in container["command"][-1]
        assert f"-m prectr_torchrec.{MODULES[component]} -- {' '.join(JOBS[component])}" in container["command"][-1]
        assert {"name": "A", "value": "1"} in container["env"]
        assert {"name": "mount-0", "persistentVolumeClaim": {"claimName": "shared"}} in pod["volumes"]
        assert "/mnt/shared" in [mount["mountPath"] for mount in container["volumeMounts"]]


def test_environment_of_the_caller_wins() -> None:
    app = components.train(config="c", data="d", run="r", cpu=8, j="1x2", env={"OMP_NUM_THREADS": "1"})
    assert app.roles[0].env["OMP_NUM_THREADS"] == "1"


def test_ranks_alone_are_those_of_one_node() -> None:
    app = components.train(config="c", data="d", run="r", cpu=8, j="2")
    assert "launch --nproc 2 " in app.roles[0].args[-1]
    assert app.roles[0].env["OMP_NUM_THREADS"] == "4"


def test_named_resource_replaces_the_sizes() -> None:
    app = components.train(config="c", data="d", run="r", h="aws_p3.8xlarge", j="1x4")
    assert app.roles[0].resource.gpu == 4
    assert app.roles[0].env["OMP_NUM_THREADS"] == "8"
