"""Runs are pushed by the real client to a hub on loopback: in one commit, once, and through every fault."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path

import pytest
import yaml
from huggingface_hub import HfApi

import hfseg
from faults import Faults
from hfseg.cli import main
from hfseg.errors import UserError
from hfseg.hub.access import open_repo
from hfseg.hub.background import BackgroundPush
from hfseg.hub.commit import commit
from hfseg.hub.local import LocalHub
from hfseg.hub.push import published
from runs import SMALL_RUN, small_recipe

pytestmark = pytest.mark.usefixtures("online")
COMMIT, PUT, PREUPLOAD = r"/api/models/me/run/commit/", r"/uploads/|/xorbs/", r"/preupload/"
BATCH_OR_TOKEN = r"/objects/batch|/xet-write-token/"


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "trained"
    hfseg.train(small_recipe(folder), verbose=False)
    return folder


@pytest.fixture(scope="module")
def light(trained) -> Path:
    """A folder without results, so that no card is drawn for each push."""
    folder = trained.with_name("light")
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "labels.json", "preprocessor_config.json", "per_class_iou.png"):
        shutil.copy(trained / name, folder / name)
    return folder


@pytest.fixture
def faults() -> Faults:
    return Faults()


@pytest.fixture
def hub(tmp_path, faults):
    with LocalHub(tmp_path / "hub", middleware=[faults]) as hub:
        yield hub


@pytest.fixture(params=["xet", "lfs"])
def transfer(request, monkeypatch) -> str:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", request.param == "lfs")
    return request.param


@pytest.fixture
def impatient(monkeypatch):
    """Where a fault stays; one that passes may take its time on a busy machine."""
    monkeypatch.setattr("hfseg.hub.patience.PATIENCE", 1.0)


def push(hub, run, repo_id="me/run", **more):
    more = {"endpoint": hub.url, "token": hub.token, "say": lambda text: None, **more}
    return hfseg.push(run, repo_id, **more)


def commits(hub, repo_id="me/run", **more) -> list:
    return HfApi(hub.url, hub.token).list_repo_commits(repo_id, **more)


def files(hub, repo_id="me/run", **more) -> set[str]:
    return set(HfApi(hub.url, hub.token).list_repo_files(repo_id, **more)) - {".gitattributes"}


def test_a_push_is_one_commit_and_a_second_one_none(hub, trained, transfer):
    first = push(hub, trained)
    assert files(hub) == set(published(trained)) and first.changed == len(files(hub))
    assert {"model.safetensors", "README.md", "recipe.yaml", "train_log.jsonl", "labels.json"} < files(hub)
    assert not any(name.startswith("checkpoints") for name in files(hub))
    made = len(commits(hub))
    assert commits(hub)[0].commit_id == first.oid and made <= 2  # the repository's first one is the hub's
    second = push(hub, trained)
    assert second.changed == 0 and second.oid == first.oid and len(commits(hub)) == made
    HfApi(hub.url, hub.token).verify_repo_checksums("me/run", local_dir=hfseg.pull(
        "me/run", endpoint=hub.url, token=hub.token, local_dir=trained.parent / f"copy-{transfer}"))


def test_nothing_of_this_machine_is_pushed(hub, trained):
    push(hub, trained)
    copy = hfseg.pull("me/run", endpoint=hub.url, token=hub.token, local_dir=trained.parent / "clean")
    for file in copy.rglob("*"):
        if file.is_file() and ".cache" not in file.parts:
            for secret in (str(trained.parent), str(Path.home()), hub.token):
                assert secret.encode() not in file.read_bytes(), file
    assert yaml.safe_load((copy / "recipe.yaml").read_text())["output_dir"] == "runs/trained"


def test_samples_of_an_earlier_push_go(hub, light, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(light, run)
    (run / "samples").mkdir()
    (run / "samples" / "99_old.png").write_bytes((light / "per_class_iou.png").read_bytes())
    push(hub, run)
    assert "samples/99_old.png" in files(hub)
    (run / "samples" / "99_old.png").unlink()
    push(hub, run)
    assert files(hub) == set(published(light))


def test_branch_tag_message_and_private(hub, light):
    pushed = push(hub, light, revision="next", tag="v1.0", message="Better roads", private=True)
    api = HfApi(hub.url, hub.token)
    assert api.repo_info("me/run").private and files(hub) == set()
    assert files(hub, revision="next") == files(hub, revision="v1.0") == set(published(light))
    assert commits(hub, revision="next")[0].title == "Better roads"
    assert push(hub, light, revision="next", tag="v1.0").oid == pushed.oid
    with pytest.raises(UserError, match=r"has a tag v1\.0 already"):
        push(hub, light, tag="v1.0")


def test_a_pull_request_is_proposed_by_who_may_only_read(hub, light):
    push(hub, light)
    head = commits(hub)[0].commit_id
    (light / "learning_curve.png").write_bytes((light / "per_class_iou.png").read_bytes())
    try:
        pushed = push(hub, light, token=hub.create_token("ann"), create_pr=True)
    finally:
        (light / "learning_curve.png").unlink()
    assert "/discussions/1" in pushed.url and commits(hub)[0].commit_id == head
    assert "learning_curve.png" in files(hub, revision="refs/pr/1")
    HfApi(hub.url, hub.token).merge_pull_request("me/run", 1)
    assert "learning_curve.png" in files(hub)


def test_what_is_no_model_or_holds_a_secret_is_refused_before_anything_is_made(hub, light, tmp_path):
    with pytest.raises(UserError, match="holds no model"):
        push(hub, tmp_path)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"no safetensors \(only pickled: pytorch_model.bin"):
        push(hub, tmp_path)
    shutil.copytree(light, tmp_path / "run")
    (tmp_path / "run" / "LICENSE").write_text("hf_" + "a" * 34)
    with pytest.raises(UserError, match="LICENSE holds what looks like a hub token"):
        push(hub, tmp_path / "run")
    assert not list(HfApi(hub.url, hub.token).list_models())


def refusal(hub, trained, case) -> dict:
    """Prepares one way of not being let in."""
    api = HfApi(hub.url, hub.token)
    if case == "read token":
        return {"token": hub.create_token("me", "read")}
    if case == "another's namespace":
        return {"token": hub.create_token("ann"), "repo_id": "bob/run"}
    if case == "another's repository":
        api.create_repo("me/run")
        return {"token": hub.create_token("ann")}
    if case == "missing, with --create_pr":
        return {"create_pr": True, "repo_id": "me/nothing"}
    return {
        "wrong token": {"token": "hf_" + "x" * 34},
        "no token": {"token": False},
        "invalid name": {"repo_id": "me/what is this"},
        "no hub": {"endpoint": "http://127.0.0.1:9"},
    }[case]


@pytest.mark.parametrize(("case", "found", "next_step"), [
    ("wrong token", "does not accept this token", "hf auth login"),
    ("no token", "nobody is signed in", "hf auth login"),
    ("read token", "your token may not do this", "token with write access"),
    ("another's namespace", "your token may not do this", "--create_pr"),
    ("another's repository", "your token may not do this", "--create_pr"),
    ("missing, with --create_pr", "there is no model me/nothing", "check the name"),
    ("invalid name", "is no name of a repository", "USER/NAME"),
    ("no hub", "the way to me/run", "check the network"),
])  # fmt: skip
def test_who_is_not_let_in_hears_why_and_what_next(hub, light, case, found, next_step, monkeypatch, impatient):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(UserError) as refused:
        push(hub, light, **refusal(hub, light, case))
    assert found in str(refused.value) and next_step in str(refused.value), str(refused.value)


@pytest.mark.parametrize(("status", "said", "found", "next_step"), [
    (402, "Payment required", "no more room for me/run", "/settings/billing"),
    (403, "Storage limit reached", "no more room for me/run: Storage limit reached", "/settings/billing"),
    (403, "Not yours", "your token may not do this with me/run: Not yours", "--create_pr"),
    (409, "You already created this model repo", "the name me/run is taken", "choose another name"),
    (412, "The branch was updated", "changed at the same moment", "push again"),
    (413, "Too large", "answered 413", ""),
    (429, "Slow down", "too many requests: Slow down", "wait some minutes"),
    (500, "Oh", "answered 500 for me/run: Oh", "what its log says"),
])  # fmt: skip
def test_each_refusal_has_its_message(hub, faults, light, status, said, found, next_step, monkeypatch):
    monkeypatch.setattr("hfseg.hub.patience.PATIENCE", 0.0)
    monkeypatch.setattr("hfseg.hub.patience.RACES", 2)
    HfApi(hub.url, hub.token).create_repo("me/run")
    faults.add("POST", COMMIT, times=1000, action=status, body={"error": said})
    with pytest.raises(UserError) as refused:
        push(hub, light)
    assert found in str(refused.value) and next_step in str(refused.value), str(refused.value)


def test_a_full_hub_says_so(tmp_path, light, transfer):
    with LocalHub(tmp_path / "hub", quota_bytes=1000) as hub:
        with pytest.raises(UserError, match=r"no more room|refused the files") as refused:
            push(hub, light)
        assert "billing" in str(refused.value) and files(hub) == set()


@pytest.mark.parametrize(("method", "path", "action", "times"), [
    ("POST", COMMIT, "503", 2),
    ("POST", COMMIT, "429", 1),
    ("POST", COMMIT, "lost", 1),
    ("POST", COMMIT, "drop", 1),
    ("POST", PREUPLOAD, "503", 1),
    ("*", BATCH_OR_TOKEN, "429", 1),
    ("*", PUT, "503", 1),
    ("*", PUT, "drop", 1),
    ("*", r"/tree/|/paths-info/", "429", 1),
    ("GET", r"/api/models/me/run$", "503", 1),
])  # fmt: skip
def test_a_fault_that_passes_ends_in_one_commit(hub, faults, light, transfer, method, path, action, times):
    HfApi(hub.url, hub.token).create_repo("me/run")
    before = len(commits(hub))
    fault = faults.add(method, path, times=times, action=action)
    told = []
    pushed = push(hub, light, say=told.append)
    assert fault.hit == times
    assert len(commits(hub)) == before + 1 and commits(hub)[0].commit_id == pushed.oid and pushed.changed == 5
    assert files(hub) == set(published(light))
    if "commit" in path:
        assert any("trying again" in text for text in told)


@pytest.mark.parametrize(("method", "path", "status"), [
    ("POST", COMMIT, 500), ("POST", COMMIT, 403), ("POST", COMMIT, 400), ("*", r"/uploads/|/shards", 422),
    ("*", r"/uploads/|/shards", 400), ("*", BATCH_OR_TOKEN, 403), ("*", PUT, 403),
])  # fmt: skip
def test_a_fault_that_stays_is_one_message_and_leaves_the_head(hub, faults, light, transfer, method, path, status,
                                                              impatient):
    HfApi(hub.url, hub.token).create_repo("me/run")
    before = [made.commit_id for made in commits(hub)]
    fault = faults.add(method, path, times=1000, action=status, body={"error": "the server's own words"})
    with pytest.raises(UserError) as failed:
        push(hub, light)
    assert fault.hit
    assert "me/run" in str(failed.value) and len(str(failed.value).splitlines()) <= 3
    assert [made.commit_id for made in commits(hub)] == before and files(hub) == set()
    faults.clear()
    assert push(hub, light).changed == 5


def test_a_lost_answer_to_a_pull_request_makes_no_second_one(hub, faults, light):
    HfApi(hub.url, hub.token).create_repo("me/run")
    faults.add("POST", COMMIT, times=1, action="lost")
    pushed = push(hub, light, create_pr=True)
    requests = list(HfApi(hub.url, hub.token).get_repo_discussions("me/run"))
    assert len(requests) == 1 and pushed.url.endswith(f"/discussions/{requests[0].num}")


def test_who_is_slower_builds_on_who_was_faster(hub, light):
    api, repo_id = open_repo("me/run", endpoint=hub.url, token=hub.token)
    made = api.create_commit

    def late(**more):
        api.create_commit = made
        HfApi(hub.url, hub.token).upload_file(path_or_fileobj=b"first", path_in_repo="other.txt", repo_id=repo_id)
        return made(**more)

    api.create_commit = late
    commit(api, repo_id, {"ours.txt": b"second"}, message="ours")
    assert files(hub) == {"other.txt", "ours.txt"}


def test_twelve_writers_at_once_all_land(hub, transfer):
    HfApi(hub.url, hub.token).create_repo("me/run")
    before, failures = len(commits(hub)), []

    def write(number: int) -> None:
        try:
            api, repo_id = open_repo("me/run", endpoint=hub.url, token=hub.token)
            written = {f"{number}.txt": f"{number}".encode(), f"{number}.bin": bytes([number]) * 10_000}
            commit(api, repo_id, written, message=f"writer {number}")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures and files(hub) == {f"{number}.{kind}" for number in range(12) for kind in ("txt", "bin")}
    assert len(commits(hub)) == before + 12


def test_the_background_push_sends_the_newest_and_survives_a_dead_hub(hub, faults, light, impatient):
    said = []
    publisher = BackgroundPush(light, "me/run", said.append, token=hub.token, endpoint=hub.url)
    faults.add("POST", COMMIT, times=1000, action=500, body={"error": "down"})
    publisher.offer("one")
    publisher.close()
    assert said and said[-1].startswith("not pushed, the training goes on") and files(hub) == set()
    faults.clear()
    publisher.offer("two")
    publisher.close()
    assert files(hub) == set(published(light)) and commits(hub)[0].title == "two"
    assert not list(light.glob(".writing-*"))


@pytest.fixture
def command(hub, monkeypatch, capsys):
    """Runs a command of hfseg in this process, signed in to the hub; returns its status and what it said."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)

    def run(*words, token=hub.token) -> tuple[int, str]:
        monkeypatch.setenv("HF_TOKEN", token)
        status = main([str(word) for word in words])
        return status, "".join(capsys.readouterr())

    return run


def test_a_training_pushes_its_best_weights_and_does_not_stop_for_the_network(hub, faults, command, tmp_path,
                                                                              monkeypatch):
    monkeypatch.chdir(tmp_path)  # a push reads the recipe in a thread, while the training writes to relative paths
    faults.add("POST", COMMIT, times=1, action=400, body={"error": "not now"})
    status, said = command("train", *SMALL_RUN, "--output_dir", "run", "--hub.push_to_hub", "--hub.repo_id", "me/run",
                           "--hub.private", "--hub.tag", "v1")  # fmt: skip
    assert status == 0, said
    assert "not pushed, the training goes on" in said and "files pushed" in said and "tagged v1" in said
    assert files(hub, revision="v1") == set(published(Path("run")))
    assert commits(hub)[0].title.startswith("Model from hfseg")
    assert json.loads(Path("run/eval_results.json").read_text())["training"]["steps"] == 12


def test_a_hub_that_refuses_is_met_before_training(hub, command, tmp_path):
    status, said = command("train", *SMALL_RUN, "--output_dir", tmp_path / "run", "--hub.push_to_hub", "true",
                           "--hub.repo_id", "me/run", token=hub.create_token("ann"))  # fmt: skip
    assert status == 2 and "your token may not do this with me/run" in said and "Traceback" not in said
    assert not (tmp_path / "run").exists()
