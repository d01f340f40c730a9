"""Every row of the hub's table of calls with the real huggingface_hub; run by test_local_hub_client.py in a process.

argv: the tokens of a reader and of a stranger. HF_TOKEN is that of `ann`, who is in the organization `lab`.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
import warnings
from pathlib import Path

import pytest
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationCopy,
    CommitOperationDelete,
    HfApi,
    HfFileSystem,
    ModelCard,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub.errors import (
    BadRequestError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

READER, STRANGER = sys.argv[1:3]
api = HfApi()
LARGE = os.urandom(700_000) + bytes(300_000)


def raises(status, kind=HfHubHTTPError):
    """Asks for an exception with that status."""
    return pytest.raises(kind, check=lambda error: error.response.status_code == status)


def who():
    assert api.whoami()["name"] == "ann" and [org["name"] for org in api.whoami()["orgs"]] == ["lab"]
    with raises(401):
        api.whoami(token="hf_wrong")


def create():
    for kind, prefix in (("model", ""), ("dataset", "datasets/"), ("space", "spaces/")):
        url = api.create_repo("thing", repo_type=kind, space_sdk="gradio" if kind == "space" else None)
        assert str(url) == f"{api.endpoint}/{prefix}ann/thing" and url.repo_type == kind
        with raises(409):
            api.create_repo("ann/thing", repo_type=kind, space_sdk="gradio" if kind == "space" else None)
        again = api.create_repo("ann/thing", repo_type=kind, space_sdk="static", exist_ok=True)
        assert again.repo_id == "ann/thing"
    assert api.create_repo("lab/shared").repo_id == "lab/shared"
    with raises(403):
        api.create_repo("you/thing")
    with raises(403):
        api.create_repo("ann/other", token=READER)
    with raises(401):
        api.create_repo("ann/other", token=False)
    assert api.space_info("ann/thing").sdk == "gradio"


def commit_and_info():
    card = "---\nlicense: mit\ntags: [x]\npipeline_tag: image-segmentation\nlibrary_name: hfseg\n---\n# Thing\n"
    for kind in ("model", "dataset", "space"):
        made = api.create_commit("ann/thing", [
            CommitOperationAdd("README.md", card.encode()), CommitOperationAdd("d/model.safetensors", LARGE),
            CommitOperationAdd("config.json", b'{"model_type": "segformer"}'),
        ], commit_message="one", commit_description="two\nthree", repo_type=kind)  # fmt: skip
        assert len(made.oid) == 40
        told = api.repo_info("ann/thing", repo_type=kind, files_metadata=True)
        assert told.sha == made.oid and told.card_data.license == "mit" and "x" in told.tags
        files = {file.rfilename: file for file in told.siblings}
        assert files["d/model.safetensors"].lfs.size == len(LARGE) and files["README.md"].size == len(card)
        assert api.repo_info("ann/thing", repo_type=kind, revision=made.oid[:9]).sha == made.oid
        with raises(404, RevisionNotFoundError):
            api.repo_info("ann/thing", repo_type=kind, revision="nowhere")
        got = hf_hub_download("ann/thing", "d/model.safetensors", repo_type=kind)
        assert Path(got).read_bytes() == LARGE
    told = api.model_info("ann/thing")
    assert (told.pipeline_tag, told.library_name, told.config) == (
        "image-segmentation", "hfseg", {"model_type": "segformer"})  # fmt: skip
    assert api.model_info("ann/thing", expand=["sha"]).tags is None
    for token, status in ((False, 401), (STRANGER, 404)):
        with raises(status, RepositoryNotFoundError):
            api.model_info("ann/nothing", token=token)
    head = api.model_info("ann/thing").sha
    api.upload_file(path_or_fileobj=LARGE, path_in_repo="d/model.safetensors", repo_id="ann/thing")
    assert api.model_info("ann/thing").sha == head  # the same content makes no commit
    with raises(412):
        api.create_commit("ann/thing", [CommitOperationAdd("a", b"1")], commit_message="x", parent_commit="0" * 40)
    with raises(403):
        api.create_commit("ann/thing", [CommitOperationAdd("a", b"1")], commit_message="x", token=READER)
    with raises(403):
        api.create_commit("ann/thing", [CommitOperationAdd("a", b"1")], commit_message="x", token=STRANGER)
    assert api.model_info("ann/thing").sha == head
    api.create_commit("ann/thing", [
        CommitOperationCopy("d/model.safetensors", "copy.safetensors"), CommitOperationDelete("d/model.safetensors"),
    ], commit_message="moved")  # fmt: skip
    assert api.list_repo_files("ann/thing") == [".gitattributes", "README.md", "config.json", "copy.safetensors"]
    with pytest.raises(EntryNotFoundError):
        api.delete_file("nothing", "ann/thing")


def lists():
    assert [m.id for m in api.list_models(search="THING")] == ["ann/thing"]
    assert [m.id for m in api.list_models(filter="x")] == ["ann/thing"]
    assert [m.id for m in api.list_models(author="lab")] == ["lab/shared"]
    assert [m.id for m in api.list_models(pipeline_tag="image-segmentation", full=True)] == ["ann/thing"]
    assert [d.id for d in api.list_datasets()] == ["ann/thing"] == [s.id for s in api.list_spaces()]
    assert len(list(api.list_models(limit=1))) == 1
    assert [m.id for m in api.list_models(sort="created_at")] == ["lab/shared", "ann/thing"]


def trees():
    api.create_repo("tree")
    many = [CommitOperationAdd(f"d/{i:04}.txt", b"x") for i in range(1100)]
    api.create_commit("ann/tree", many, commit_message="many")
    assert len(list(api.list_repo_tree("ann/tree", recursive=True))) == 1102  # in two pages
    entry = next(iter(api.list_repo_tree("ann/tree", "d", expand=True)))
    assert entry.path == "d/0000.txt" and entry.last_commit.title == "many"
    with raises(404, EntryNotFoundError):
        list(api.list_repo_tree("ann/tree", "nowhere"))
    found = api.get_paths_info("ann/tree", ["d/0001.txt", "d", "nowhere"], expand=True)
    assert [type(each).__name__ for each in found] == ["RepoFile", "RepoFolder"]
    assert api.file_exists("ann/tree", "d/0001.txt") and not api.file_exists("ann/tree", "nowhere")
    fs = HfFileSystem()
    assert len(fs.ls("ann/tree/d")) == 1100 and fs.cat("ann/thing/config.json") == b'{"model_type": "segformer"}'
    with fs.open("ann/thing/copy.safetensors") as file:  # by ranges
        file.seek(699_990)
        assert file.read(20) == LARGE[699_990:700_010]
    api.super_squash_history("ann/tree")
    assert len(api.list_repo_commits("ann/tree")) == 1 and len(api.list_repo_files("ann/tree")) == 1101


def references():
    head = api.model_info("ann/thing").sha
    api.create_branch("ann/thing", branch="side/branch")
    api.create_tag("ann/thing", tag="v1.0", tag_message="first")
    for again in (api.create_branch, lambda *a, branch, **k: api.create_tag(*a, tag="v1.0", **k)):
        with raises(409):
            again("ann/thing", branch="side/branch")
        again("ann/thing", branch="side/branch", exist_ok=True)
    api.upload_file(path_or_fileobj=b"1", path_in_repo="only-here", repo_id="ann/thing", revision="side/branch")
    assert api.file_exists("ann/thing", "only-here", revision="side/branch")
    assert not api.file_exists("ann/thing", "only-here")
    refs = api.list_repo_refs("ann/thing", include_pull_requests=True)
    assert {ref.name for ref in refs.branches} == {"main", "side/branch"} and refs.pull_requests == []
    assert [(tag.name, tag.target_commit) for tag in refs.tags] == [("v1.0", head)]
    assert snapshot_download("ann/thing", revision="v1.0").endswith(head)
    with raises(400, BadRequestError):
        api.create_branch("ann/thing", branch="refs/pr/5")
    with raises(403):
        api.delete_branch("ann/thing", branch="main")
    api.delete_tag("ann/thing", tag="v1.0")
    api.delete_branch("ann/thing", branch="side/branch")
    with pytest.raises(RevisionNotFoundError):
        hf_hub_download("ann/thing", "config.json", revision="v1.0")
    titles = [commit.title for commit in api.list_repo_commits("ann/thing")]
    assert titles == ["moved", "one", "initial commit"]


def cards():
    ModelCard("---\nlicense: mit\n---\n# Good").validate()
    with pytest.raises(ValueError, match='"license" must be one of'):
        ModelCard("---\nlicense: mine\n---\n# Bad").validate()
    bad = b"---\nmodel-index:\n- name: x\n---\n# Bad"
    head = api.model_info("ann/thing").sha
    with pytest.raises(ValueError, match="model-index"):
        api.upload_file(path_or_fileobj=bad, path_in_repo="README.md", repo_id="ann/thing")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        api.upload_file(path_or_fileobj=b"# no metadata", path_in_repo="README.md", repo_id="lab/shared")
    assert "empty or missing yaml metadata" in str(caught[0].message)
    assert api.model_info("ann/thing").sha == head


def pull_requests():
    made = api.create_commit("ann/thing", [CommitOperationAdd("proposed.bin", LARGE)], commit_message="A proposal",
                             create_pr=True, token=STRANGER)  # fmt: skip
    assert (made.pr_num, made.pr_revision) == (1, "refs/pr/1")
    assert hf_hub_download("ann/thing", "proposed.bin", revision="refs/pr/1")
    assert not api.file_exists("ann/thing", "proposed.bin")
    with raises(403):
        api.merge_pull_request("ann/thing", 1, token=STRANGER)
    api.upload_file(path_or_fileobj=b"2", path_in_repo="more", repo_id="ann/thing", revision="refs/pr/1",
                    token=STRANGER)  # fmt: skip
    api.merge_pull_request("ann/thing", 1)
    assert {"proposed.bin", "more"} < set(api.list_repo_files("ann/thing"))
    told = api.get_discussion_details("ann/thing", 1)
    assert told.status == "merged" and told.merge_commit_oid == api.model_info("ann/thing").sha
    draft = api.create_pull_request("ann/thing", "A draft", description="words")
    assert (draft.num, draft.status) == (2, "draft")
    api.comment_discussion("ann/thing", 2, "a comment")
    talk = api.create_discussion("ann/thing", "Only talk")
    assert api.change_discussion_status("ann/thing", talk.num, "closed").new_status == "closed"
    assert [d.num for d in api.get_repo_discussions("ann/thing", discussion_type="pull_request")] == [2, 1]
    three = api.create_commit("ann/thing", [CommitOperationAdd("more", b"3")], commit_message="Three", create_pr=True)
    api.upload_file(path_or_fileobj=b"4", path_in_repo="more", repo_id="ann/thing")
    with raises(409):
        api.merge_pull_request("ann/thing", three.pr_num)


def spaces():
    assert api.get_space_runtime("ann/thing").stage == "NO_APP_FILE"
    api.upload_file(path_or_fileobj=b"pass", path_in_repo="app.py", repo_id="ann/thing", repo_type="space")
    api.request_space_hardware("ann/thing", "t4-small", sleep_time=300)
    assert api.get_space_runtime("ann/thing").requested_hardware == "t4-small"
    assert api.pause_space("ann/thing").stage == "PAUSED" and api.restart_space("ann/thing").stage == "STOPPED"
    api.add_space_secret("ann/thing", "KEY", "hidden value")
    assert "hidden value" not in str(api.get_space_secrets("ann/thing")) and "KEY" in api.get_space_secrets("ann/thing")
    assert api.add_space_variable("ann/thing", "NAME", "shown")["NAME"].value == "shown"
    api.delete_space_secret("ann/thing", "KEY")
    assert api.get_space_secrets("ann/thing") == {}


def access():
    api.create_repo("closed", private=True)
    api.upload_file(path_or_fileobj=b"1", path_in_repo="a.txt", repo_id="ann/closed")
    for token in (False, STRANGER):
        with pytest.raises(RepositoryNotFoundError):
            hf_hub_download("ann/closed", "a.txt", token=token)
        with pytest.raises(RepositoryNotFoundError):
            api.auth_check("ann/closed", token=token)
    api.auth_check("ann/closed", token=READER)
    api.auth_check("ann/closed", write=True)
    with raises(403):
        api.auth_check("ann/closed", write=True, token=READER)
    api.update_repo_settings("ann/closed", private=False, gated="auto")
    assert api.model_info("ann/closed").gated == "auto"
    for token in (False, STRANGER):
        with pytest.raises(GatedRepoError):
            hf_hub_download("ann/closed", "a.txt", token=token)
    api.grant_access("ann/closed", "eve")
    assert hf_hub_download("ann/closed", "a.txt", token=STRANGER)
    assert [request.username for request in api.list_accepted_access_requests("ann/closed")] == ["eve"]


def moves_and_ends():
    api.move_repo("ann/closed", "lab/open")
    assert api.model_info("ann/closed").id == "lab/open"
    with raises(409):
        api.move_repo("lab/open", "lab/shared")
    with raises(403):
        api.delete_repo("lab/open", token=STRANGER)
    api.delete_repo("lab/open")
    with pytest.raises(RepositoryNotFoundError):
        api.delete_repo("lab/open")
    api.delete_repo("lab/open", missing_ok=True)


def folders():
    with tempfile.TemporaryDirectory() as folder:
        files = {"weights.safetensors": LARGE, "sub/notes.txt": b"notes", "logs/x.log": b"no", ".gitignore": b"logs/\n",
                 "empty.txt": b"", "many/%41 ä.txt": b"odd"}  # fmt: skip
        for path, content in files.items():
            (Path(folder) / path).parent.mkdir(exist_ok=True)
            (Path(folder) / path).write_bytes(content)
        api.create_repo("folder", repo_type="dataset")
        made = api.upload_folder(folder_path=folder, repo_id="ann/folder", repo_type="dataset")
        back = Path(snapshot_download("ann/folder", repo_type="dataset"))
        del files["logs/x.log"]
        assert {str(f.relative_to(back)) for f in back.rglob("*") if f.is_file()} == {*files, ".gitattributes"}
        assert all((back / path).read_bytes() == content for path, content in files.items())
        api.upload_folder(folder_path=folder, repo_id="ann/folder", repo_type="dataset")
        assert api.dataset_info("ann/folder").sha == made.oid
        assert api.verify_repo_checksums("ann/folder", repo_type="dataset").mismatches == []
        api.delete_folder("sub", "ann/folder", repo_type="dataset")
        assert not api.file_exists("ann/folder", "sub/notes.txt", repo_type="dataset")


for step in (who, create, commit_and_info, lists, trees, references, cards, pull_requests, spaces, access,
             moves_and_ends, folders):  # fmt: skip
    began = time.monotonic()
    step()
    print(f"{time.monotonic() - began:.1f} s", step.__name__, flush=True)
