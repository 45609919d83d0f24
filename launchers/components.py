"""TorchX components: `torchx run -s SCHEDULER prectr.train ...`, the same jobs as `prectr train`, `evaluate` and `teach`.

TorchX builds its command line from the annotations and docstrings here: keep `typing.Optional`, `Dict` and `List`, and imports
light.
"""

import shlex
from typing import Dict, List, Optional

import torchx
from torchx import specs
from torchx.components import dist
from torchx.specs.finder import ComponentValidationException

from prectr_torchrec.system.paths import PathError, check_arguments

SEPARATOR = "--"
"""Between torchrun's arguments and ours, or torchrun takes `--run` for an abbreviation of its own `--run-path`."""
SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1")
"""What torchrun hands on to the ranks; SIGUSR1 is what `sbatch --signal` often sends ahead of a time limit."""


def train(
    *script_args: str,
    config: str,
    data: str,
    run: str,
    j: str = "1x1",
    cpu: int = 2,
    gpu: int = 0,
    mem_mb: int = 8192,
    h: Optional[str] = None,
    image: str = torchx.IMAGE,
    name: str = "prectr/train",
    max_retries: int = 3,
    env: Optional[Dict[str, str]] = None,
    mounts: Optional[List[str]] = None,
    rdzv_port: int = 29500,
    max_restarts: int = 0,
) -> specs.AppDef:
    """Trains a ranker; a retried job resumes from its run directory.

    Args:
        script_args: further arguments of the trainer, after `--`: `-- --set=train.seed=2 --set=model.text=false`
        config: YAML file, or the name of a shipped configuration such as prectr_v1
        data: folder of prepared samples, as the ranks see it
        run: run directory on storage that all nodes share
        j: [[min_nodes:]nodes x] ranks of each node, such as 2x8 or 8; with GPUs one rank a GPU
        cpu: CPU cores of each node
        gpu: GPUs of each node
        mem_mb: memory of each node in MB
        h: named resource, in place of cpu, gpu and mem_mb
        image: container image with prectr-torchrec installed; local_cwd and slurm do not use it
        name: experiment/job
        max_retries: restarts by the scheduler after a failure
        env: environment of the ranks, such as A=1,B=2
        mounts: as type=bind,src=/host,dst=/job[,readonly]
        rdzv_port: port of the first node where the nodes of a job meet
        max_restarts: restarts of the ranks in place, by torchrun, after one has failed
    """
    app = dist.ddp(
        *_arguments("--config", config, "--data", data, "--run", run, *script_args),
        m="prectr_torchrec.training.rank",
        j=j,
        cpu=cpu,
        gpu=gpu,
        memMB=mem_mb,
        h=h,
        image=image,
        name=name,
        max_retries=max_retries,
        env=env,
        mounts=mounts,
        rdzv_port=rdzv_port,
    )
    return _finish(app, j, max_restarts)


def evaluate(
    *script_args: str,
    run: str,
    data: str,
    j: str = "1x1",
    cpu: int = 2,
    gpu: int = 0,
    mem_mb: int = 8192,
    h: Optional[str] = None,
    image: str = torchx.IMAGE,
    name: str = "prectr/evaluate",
    max_retries: int = 1,
    env: Optional[Dict[str, str]] = None,
    mounts: Optional[List[str]] = None,
    rdzv_port: int = 29500,
    max_restarts: int = 0,
) -> specs.AppDef:
    """Scores a split with a trained ranker and measures it.

    Args:
        script_args: further arguments of the evaluation, after `--`: `-- --oracle FILE --hide-grades`
        run: run directory of the training
        data: folder of prepared samples, as the ranks see it
        j: [[min_nodes:]nodes x] ranks of each node, such as 2x8 or 8; with GPUs one rank a GPU
        cpu: CPU cores of each node
        gpu: GPUs of each node
        mem_mb: memory of each node in MB
        h: named resource, in place of cpu, gpu and mem_mb
        image: container image with prectr-torchrec installed; local_cwd and slurm do not use it
        name: experiment/job
        max_retries: restarts by the scheduler after a failure
        env: environment of the ranks, such as A=1,B=2
        mounts: as type=bind,src=/host,dst=/job[,readonly]
        rdzv_port: port of the first node where the nodes of a job meet
        max_restarts: restarts of the ranks in place, by torchrun, after one has failed
    """
    app = dist.ddp(
        *_arguments("--run", run, "--data", data, *script_args),
        m="prectr_torchrec.evaluation.evaluate",
        j=j,
        cpu=cpu,
        gpu=gpu,
        memMB=mem_mb,
        h=h,
        image=image,
        name=name,
        max_retries=max_retries,
        env=env,
        mounts=mounts,
        rdzv_port=rdzv_port,
    )
    return _finish(app, j, max_restarts)


def teach(
    *script_args: str,
    teacher: str,
    pairs: str,
    out: str,
    j: str = "1x1",
    cpu: int = 2,
    gpu: int = 0,
    mem_mb: int = 8192,
    h: Optional[str] = None,
    image: str = torchx.IMAGE,
    name: str = "prectr/teach",
    max_retries: int = 3,
    env: Optional[Dict[str, str]] = None,
    mounts: Optional[List[str]] = None,
    rdzv_port: int = 29500,
    max_restarts: int = 0,
) -> specs.AppDef:
    """Grades pairs softly with a teacher; a retried job goes on with the parts that are missing.

    Args:
        script_args: further arguments of the job, after `--`: `-- --hidden --prompt FILE`
        teacher: folder of a causal language model or a sequence classifier, as the ranks see it
        pairs: file of pairs, as the ranks see it
        out: folder for the soft grades, on storage that all nodes share
        j: [[min_nodes:]nodes x] ranks of each node, such as 2x8 or 8; with GPUs one rank a GPU
        cpu: CPU cores of each node
        gpu: GPUs of each node
        mem_mb: memory of each node in MB
        h: named resource, in place of cpu, gpu and mem_mb
        image: container image with prectr-torchrec installed; local_cwd and slurm do not use it
        name: experiment/job
        max_retries: restarts by the scheduler after a failure
        env: environment of the ranks, such as A=1,B=2
        mounts: as type=bind,src=/host,dst=/job[,readonly]
        rdzv_port: port of the first node where the nodes of a job meet
        max_restarts: restarts of the ranks in place, by torchrun, after one has failed
    """
    app = dist.ddp(
        *_arguments("--teacher", teacher, "--pairs", pairs, "--out", out, *script_args),
        m="prectr_torchrec.text.teach",
        j=j,
        cpu=cpu,
        gpu=gpu,
        memMB=mem_mb,
        h=h,
        image=image,
        name=name,
        max_retries=max_retries,
        env=env,
        mounts=mounts,
        rdzv_port=rdzv_port,
    )
    return _finish(app, j, max_restarts)


def distill(
    *script_args: str,
    config: str,
    pairs: str,
    out: str,
    j: str = "1x1",
    cpu: int = 2,
    gpu: int = 0,
    mem_mb: int = 8192,
    h: Optional[str] = None,
    image: str = torchx.IMAGE,
    name: str = "prectr/distill",
    max_retries: int = 3,
    env: Optional[Dict[str, str]] = None,
    mounts: Optional[List[str]] = None,
    rdzv_port: int = 29500,
    max_restarts: int = 0,
) -> specs.AppDef:
    """Distils a text encoder and relevance tower; a retried job goes on from its last checkpoint.

    Args:
        script_args: further arguments of the job, after `--`: `-- --teacher-scores DIR --set=distill.seed=2`
        config: YAML file, or the name of a shipped configuration such as student
        pairs: file of pairs, as the ranks see it
        out: result folder, on storage that all nodes share
        j: [[min_nodes:]nodes x] ranks of each node, such as 2x8 or 8; with GPUs one rank a GPU
        cpu: CPU cores of each node
        gpu: GPUs of each node
        mem_mb: memory of each node in MB
        h: named resource, in place of cpu, gpu and mem_mb
        image: container image with prectr-torchrec installed; local_cwd and slurm do not use it
        name: experiment/job
        max_retries: restarts by the scheduler after a failure
        env: environment of the ranks, such as A=1,B=2
        mounts: as type=bind,src=/host,dst=/job[,readonly]
        rdzv_port: port of the first node where the nodes of a job meet
        max_restarts: restarts of the ranks in place, by torchrun, after one has failed
    """
    app = dist.ddp(
        *_arguments("--config", config, "--pairs", pairs, "--out", out, *script_args),
        m="prectr_torchrec.text.distill",
        j=j,
        cpu=cpu,
        gpu=gpu,
        memMB=mem_mb,
        h=h,
        image=image,
        name=name,
        max_retries=max_retries,
        env=env,
        mounts=mounts,
        rdzv_port=rdzv_port,
    )
    return _finish(app, j, max_restarts)


def _arguments(*words: str) -> List[str]:
    """What the program is given. Paths are those of the ranks; a URL is none."""
    try:
        check_arguments(words)
    except PathError as error:
        raise ComponentValidationException(str(error)) from None
    return [SEPARATOR, *words]


def _finish(app: specs.AppDef, j: str, max_restarts: int) -> specs.AppDef:
    """Names the role after the job, shares the node's cores among its ranks, and has them restarted and sent signals.

    Ranks of one node are started as `prectr train --nproc` does, which opens no port; torchrun's own store would.
    """
    (role,) = app.roles
    nodes, _, ranks = j.rpartition("x")
    torchrun, module, words = role.args[-1].partition(" -m ")
    if nodes.split(":")[-1] in ("", "1"):
        start = f"python -m prectr_torchrec.distributed.launch --nproc {ranks} --max-restarts {max_restarts}"
        command = start + " " + words
    else:
        options = "torchrun --max_restarts {} --signals_to_handle {}".format(max_restarts, ",".join(SIGNALS))
        command = torchrun.replace("torchrun", options, 1) + module + words
    # exec: the shell would keep a signal of the scheduler to itself
    role.args[-1] = _exports(role.env) + "exec " + command
    role.name = app.name
    role.env.setdefault("OMP_NUM_THREADS", str(max(1, role.resource.cpu // int(ranks))))
    role.env.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    role.env.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")  # else restarted ranks may meet the addresses of the dead
    return app


def _exports(env: Dict[str, str]) -> str:
    """Moves the values with a comma into the command: Slurm's `--export` would take what follows it for another variable."""
    moved = {name: env.pop(name) for name, value in list(env.items()) if "," in value}
    return "".join("export {}={}; ".format(name, shlex.quote(value).replace("$", "$$")) for name, value in moved.items())
