"""The TorchX components, through TorchX's own linter and command line."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

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
    assert "--nproc_per_node 2" in " ".join(part.strip(" '") for part in request.splitlines())


def test_torchrun_hands_every_argument_to_the_trainer() -> None:
    app = components.train("--set=train.seed=2", "--set=a.b=[1, 2]", config="c", data="d", run="r", j="1x2")
    expected = ["--config", "c", "--data", "d", "--run", "r", "--set=train.seed=2", "--set=a.b=[1, 2]"]
    assert torchrun_arguments(app.roles[0].args[-1]) == expected


def test_torchrun_hands_every_argument_to_the_evaluation() -> None:
    app = components.evaluate("--oracle", "o", run="r", data="d", j="1x2")
    assert torchrun_arguments(app.roles[0].args[-1]) == ["--run", "r", "--data", "d", "--oracle", "o"]


def test_torchrun_hands_every_argument_to_the_distillation() -> None:
    app = components.distill("--teacher-scores", "s", config="c", pairs="p", out="o", j="1x2")
    given = ["--config", "c", "--pairs", "p", "--out", "o", "--teacher-scores", "s"]
    assert torchrun_arguments(app.roles[0].args[-1]) == given and "prectr_torchrec.text.distill" in app.roles[0].args[-1]


def test_torchrun_hands_every_argument_to_the_teacher() -> None:
    app = components.teach("--hidden", teacher="t", pairs="p", out="o", j="1x2")
    assert torchrun_arguments(app.roles[0].args[-1]) == ["--teacher", "t", "--pairs", "p", "--out", "o", "--hidden"]


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
    assert "-m prectr_torchrec.training.main -- --config prectr_v1 --data /data --run /run" in request
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
    assert "-m prectr_torchrec.training.evaluate -- --run /run --data /data --oracle /o.parquet" in container["command"][-1]


def test_environment_of_the_caller_wins() -> None:
    app = components.train(config="c", data="d", run="r", cpu=8, j="1x2", env={"OMP_NUM_THREADS": "1"})
    assert app.roles[0].env["OMP_NUM_THREADS"] == "1"


def test_ranks_alone_are_those_of_one_node() -> None:
    app = components.train(config="c", data="d", run="r", cpu=8, j="2")
    assert "--nnodes 1 --nproc_per_node 2" in app.roles[0].args[-1]
    assert app.roles[0].env["OMP_NUM_THREADS"] == "4"


def test_named_resource_replaces_the_sizes() -> None:
    app = components.train(config="c", data="d", run="r", h="aws_p3.8xlarge", j="1x4")
    assert app.roles[0].resource.gpu == 4
    assert app.roles[0].env["OMP_NUM_THREADS"] == "8"
