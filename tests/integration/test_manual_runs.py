"""What the manual shows runs, page by page in its order, in a workspace as a reader has it; or another test runs it."""

from __future__ import annotations

import ast
import itertools
import json
import os
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from registries import add_version

from atelier.cli import main
from atelier.config import Promote, load_params
from atelier.config.records import Report
from atelier.registry.promote import promote
from atelier.registry.register import register
from manual import CHECKOUT, PAGES, blocks, commands, parts
from own_pictures import write_pictures


class Elsewhere(NamedTuple):
    """What does not run here, why, and the test that runs the same, if one can."""

    why: str
    test: str
    lines: tuple[str, ...]


IMAGE = "registry.example.org/atelier@sha256:…"
ELSEWHERE = (
    Elsewhere("is what runs these tests", "", ("make test", "source .venv/bin/activate")),
    Elsewhere(
        "minutes, of all of MNIST",
        "integration/test_pipeline.py::test_repro_again_does_nothing",
        ("make demo", "dvc repro"),
    ),
    Elsewhere(
        "trains again",
        "integration/test_pipeline.py::test_one_training_parameter_reruns_that_model_and_nothing_else",
        (
            *("dvc exp run -S runs.mnist-cvae.kimg=60", "dvc params diff", "dvc metrics diff"),
            "dvc plots show",
        ),
    ),
    Elsewhere(
        "two branches",
        "test_merge.py::test_two_branches_that_each_add_a_run_train_nothing_again",
        ("git merge their-branch", "atelier merge", "dvc checkout --allow-missing ; dvc repro ; git commit --all"),
    ),
    Elsewhere(
        "runs all stages",
        "test_repro.py::test_side_by_side_they_leave_the_lock_of_one_after_another",
        ("atelier repro --jobs 2",),
    ),
    Elsewhere(
        "serves until it is stopped",
        "tracking/test_feed.py::test_server_slow_deaf_gone_and_killed",
        ("mlflow ui --backend-store-uri sqlite:///mlflow.db",),
    ),
    Elsewhere(
        "builds a wheel, and installs it and gigabytes of packages",
        "test_distribution.py::test_a_workspace_runs_to_the_end_by_the_core_alone_and_then_does_nothing",
        (
            *("make dist", "pip install dist/atelier_images-*.whl", "cd work && dvc repro"),
            "pipx install --include-deps dist/atelier_images-*.whl",
            "uvx --from dist/atelier_images-*.whl atelier demo work",
        ),
    ),
    Elsewhere(
        "minutes, of all of MNIST",
        "test_init.py::test_a_demo_runs_the_pipeline_of_a_new_workspace",
        ("atelier demo my-workspace",),
    ),
    Elsewhere(
        "fetches 33 MB from npm",
        "sharing/test_playground.py::test_a_hundred_drawings_are_those_of_sample",
        (
            *("atelier playground models:/mnist-cgan/1", "atelier playground models/mnist-cgan"),
            "atelier playground models:/mnist-cgan@champion --out playground",
            "atelier publish mnist-cgan --to shared --playground",
        ),
    ),
    Elsewhere(
        "a model hub",
        "sharing/test_publish.py::test_a_hub_gets_the_same_files_by_the_token_of_the_environment",
        (
            "atelier publish models:/mnist-cgan/1 --to hf://OWNER/NAME",
            "atelier publish models:/mnist-cgan@champion --to hf://OWNER/NAME",
        ),
    ),
    Elsewhere(
        "a commit that made the version",
        "registry/test_reproduce.py::test_the_same_weights_from_a_clone_without_the_data",
        ("atelier reproduce models:/mnist-cgan@champion",),
    ),
    Elsewhere(
        "the registry of another environment",
        "registry/test_package.py::test_to_another_registry_and_its_champion_there",
        ("atelier promote mnist-cgan --to-registry https://mlflow.production.example",),
    ),
    Elsewhere(
        "serves until it is stopped",
        "registry/test_package.py::test_served_over_http",
        (
            "mlflow models serve --model-uri models:/mnist-cgan@champion --env-manager local --port 5001",
            "curl -s localhost:5001/invocations -H Content-Type: application/json "
            '-d {"dataframe_records": [{"n": 2, "label": 3, "seed": 5}], "params": {"format": "png"}}',
        ),
    ),
    Elsewhere(
        "installs gigabytes of packages",
        "registry/test_package.py::test_a_version_brings_the_code_that_loads_it",
        (
            "mlflow artifacts download --artifact-uri models:/mnist-cgan@champion --dst-path version",
            "(cd version && pip install -r requirements.txt)",
            "python -c import mlflow; print(mlflow.pyfunc.load_model('version').predict({'n': [3]}).shape)",
        ),
    ),
    Elsewhere(
        "servers",
        "integration/test_team_server.py::test_from_training_to_promotion_and_back",
        (
            *("apt-get install postgresql", "pip install atelier-images[server]"),
            *("make server", "source .server/client.env"),
        ),
    ),
    Elsewhere(
        "an S3",
        "integration/test_dvc_remote.py::test_what_one_clone_pushes_another_pulls_byte_for_byte",
        ("dvc push",),
    ),
    Elsewhere(
        "200,000 images through Inception",
        "test_docs.py::test_the_published_protocol_is_what_its_command_runs",
        ("atelier repro --root fid",),
    ),
    Elsewhere(
        "20 minutes of a core",
        "test_docs.py::test_the_published_likelihood_is_what_its_commands_train",
        (
            *("mkdir likelihood", "set -- mnist --params benchmarks/likelihood.yaml --root likelihood"),
            "atelier ingest $@ ; atelier prepare $@ ; atelier reference $@",
            "set -- bound --params benchmarks/likelihood.yaml --root likelihood",
            "atelier train $@ ; atelier evaluate $@",
        ),
    ),
    Elsewhere(
        "hours",
        "test_docs.py::test_the_table_of_systems_is_of_what_was_judged",
        (
            "python benchmarks/pokemon_pictures.py pictures",
            "python benchmarks/systems.py --run dcgan --set ingest.paths.pokemon=pictures "
            "--set prepare.sets.pokemon.test_images=149",
        ),
    ),
    Elsewhere(
        "several processes, as many machines",
        "integration/test_training_ranks.py::test_two_nodes_train_to_the_weights_of_two_ranks",
        (
            "torchrun --nproc-per-node 2 -m atelier train mnist-cgan",
            "torchrun --nnodes 2 --nproc-per-node 1 --node-rank 0 --master-addr HOST --master-port 29500 "
            "-m atelier train mnist-cgan",
        ),
    ),
    Elsewhere(
        "all stages, a process each",
        "integration/test_pipeline.py::test_kubeflow_here_gives_the_same_bytes",
        ("atelier pipeline run --local --out kubeflow",),
    ),
    Elsewhere(
        "trials, a process each or a TrainJob each",
        "pipelines/test_local.py::test_a_search_has_the_trials_and_the_winner_of_atelier_search",
        (
            "atelier pipeline run --local --search small",
            f"atelier pipeline submit --search small --image {IMAGE} [--gpus 1] --service-account atelier-pipeline",
        ),
    ),
    Elsewhere(
        "a cluster",
        "deploy/test_manifests.py::test_every_object_is_valid",
        (
            "kubectl -n NAMESPACE create secret generic atelier-credentials --from-literal=AWS_ACCESS_KEY_ID=… "
            "--from-literal=AWS_SECRET_ACCESS_KEY=…",
            "kubectl -n NAMESPACE create secret generic mlflow-store --from-literal=password=… "
            "--from-literal=uri=postgresql+psycopg2://mlflow:…@postgres/mlflow",
            "kubectl apply -k deploy/overlays/laptop",
            "export KF_PIPELINES_ENDPOINT=http://localhost:8888 KF_PIPELINES_TOKEN=…",
        ),
    ),
    Elsewhere(
        "a cluster",
        "pipelines/test_check.py::test_all_is_well",
        (f"atelier pipeline check --image {IMAGE} [--nodes 2 --gpus 1]",),
    ),
    Elsewhere(
        "a server of Kubeflow",
        "pipelines/test_server.py::test_submit_runs_the_uploaded_version_with_its_parameters",
        (
            "atelier pipeline submit --image REGISTRY/atelier@sha256:… --gpus 1",
            f"atelier pipeline submit --image {IMAGE} --gpus 1 --service-account atelier-pipeline",
        ),
    ),
    Elsewhere(
        "a server of Kubeflow",
        "pipelines/test_server.py::test_a_schedule_set_twice_is_one_and_changed_is_one",
        (
            "atelier schedule set nightly --cron 0 3 * * * --image REGISTRY/atelier@sha256:…",
            "atelier schedule set nightly --cron 0 3 * * * --image … --param train.pictures=12",
        ),
    ),
    Elsewhere(
        "a server of Kubeflow",
        "pipelines/test_server.py::test_list_and_delete",
        ("atelier schedule list", "atelier schedule delete nightly"),
    ),
    Elsewhere(
        "a server of Kubeflow",
        "pipelines/test_runs.py::test_list_and_a_run_that_is_not_there",
        ("atelier pipeline list", "atelier pipeline status RUN"),
    ),
    Elsewhere(
        "a server of Kubeflow",
        "pipelines/test_runs.py::test_logs_of_all_or_of_one_stage",
        ("atelier pipeline logs RUN [STAGE [NAME]]",),
    ),
    Elsewhere(
        "a server of Kubeflow",
        "pipelines/test_runs.py::test_stop_and_retry",
        ("atelier pipeline stop RUN", "atelier pipeline retry RUN"),
    ),
)
NOT_HERE = {line for one in ELSEWHERE for line in one.lines}
# pages whose blocks of Python are tried elsewhere
PYTHON = {
    "python.md": "test_api.py::test_every_block_of_the_page_runs",
    "models.md": "test_own.py::test_the_examples_of_the_manual_are_good",
    "evaluation.md": "test_own.py::test_the_examples_of_the_manual_are_good",
}


@pytest.fixture(scope="module")
def workspace(judged_workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As a reader has it: a champion, two better versions after it, and what is left of an older run."""
    root = tmp_path_factory.mktemp("manual") / "workspace"
    shutil.copytree(judged_workspace, root, ignore=shutil.ignore_patterns("mlflow.db", "mlartifacts"))
    (root / "benchmarks").symlink_to(CHECKOUT / "benchmarks")
    (root / ".dvc").mkdir()
    (root / ".dvc" / "config").write_text("[core]\n    no_scm = true\n")
    shutil.copytree(root / "models" / "mnist-cvae", root / "models" / "old-run")
    register("mnist-cgan", load_params(root / "params.yaml"), root, print)
    promote("mnist-cgan", 1, "champion", Promote(), root, print)
    shutil.copy(next(root.glob("mlartifacts/**/sampler.onnx")), root)
    report = json.loads((root / "reports" / "mnist-cgan" / "report.json").read_text())
    for mean in (0.2, 0.1):
        report["fd_classifier"] |= {"mean": mean, "deviation": 0.01}
        add_version(root, "mnist-cgan", Report.model_validate(report))
    return root


def shown(page: Path) -> list[tuple[str, str]]:
    """The blocks of a page that something can run."""
    return [(language, text) for language, text in blocks(page) if language in ("console", "sh", "python")]


@pytest.mark.parametrize("page", [page for page in PAGES if shown(page)], ids=lambda page: page.name)
def test_what_a_page_shows_runs(
    page: Path, workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = shutil.copytree(workspace, tmp_path / "workspace", symlinks=True)
    if page.name == "training.md":
        shutil.rmtree(root / "models" / "mnist-cgan")
    write_pictures(tmp_path / "home" / "pets")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(root)
    names = {"__name__": page.stem}
    for language, text in shown(page):
        if language == "python" and page.name not in PYTHON:
            exec(compile(text, str(page), "exec"), names)
        for line in commands(language, text):
            for command in [line] if " ".join(line) in NOT_HERE else parts(line):
                if " ".join(command) not in NOT_HERE:
                    monkeypatch.setattr(sys, "argv", [os.path.expanduser(word) for word in command])
                    assert run(*sys.argv) in (0, None), f"{' '.join(command)}: {capsys.readouterr()}"
                    made = [Path(value) for name, value in itertools.pairwise(sys.argv) if name in ("--out", "-o")]
                    assert all(map(Path.is_file, made)), " ".join(command)


def run(name: str, *arguments: str) -> int | None:
    """The exit code of a command; whose arguments `atelier` takes from the process."""
    if name == "atelier":
        sys.argv = [word.replace("sha256:…", f"sha256:{64 * '0'}") for word in sys.argv]
        return main()
    if name == "dvc":
        from dvc.cli import main as dvc

        return dvc(list(arguments))
    if name == "cp":
        shutil.copy(*arguments)
        return 0
    pytest.fail(f"{' '.join((name, *arguments))}: does not run here; say in ELSEWHERE why, and what tries it")


def test_what_does_not_run_here_is_shown_and_tried() -> None:
    lines = [line for page in PAGES for block in blocks(page) for line in commands(*block)]
    found = {" ".join(words) for line in lines for words in (line, *parts(line))}
    assert found >= NOT_HERE, NOT_HERE - found
    for test in {one.test for one in ELSEWHERE if one.test} | set(PYTHON.values()):
        file, _, name = test.partition("::")
        tree = ast.parse((CHECKOUT / "tests" / file).read_text())
        assert name in {one.name for one in tree.body if isinstance(one, ast.FunctionDef)}, test
