"""The loopback Hub against the true client: what it can do, and what the client makes of faults.

The second half is also the record of how huggingface_hub and transformers fail.
"""

import json
import socket
from pathlib import Path

import pytest
import torch
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    ModelCard,
    get_safetensors_metadata,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

from hfsae.activations import TextArguments
from hfsae.activations.tokens import documents

from .loopback_hub import DOWNLOADS, UPLOADS, Fault, LoopbackHub

WRITE, READ, OTHER, WRONG = "hf_write", "hf_read", "hf_other", "hf_wrong"
ID = "alice/sae"
PUSHED = [".gitattributes", "README.md", "config.json", "model.safetensors"]


class PlainConfig(PreTrainedConfig):
    model_type = "plain_in_tests"
    d_in: int
    d_sae: int


class Plain(PreTrainedModel):
    """As plain as a model can be, so that what fails is the client's affair."""

    config_class = PlainConfig

    def __init__(self, config: PlainConfig):
        super().__init__(config)
        for name in ("W_enc", "W_dec"):
            setattr(self, name, torch.nn.Parameter(torch.randn(config.d_in, config.d_sae)))
        self.post_init()

    def _init_weights(self, module: torch.nn.Module) -> None:
        pass


AutoConfig.register(PlainConfig.model_type, PlainConfig)
AutoModel.register(PlainConfig, Plain)


def small_sae(seed: int = 0, d_in: int = 4, d_sae: int = 8) -> Plain:
    torch.manual_seed(seed)
    return Plain(PlainConfig(d_in=d_in, d_sae=d_sae)).eval()


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


def load(repo: str = ID, **options: object) -> Plain:
    return AutoModel.from_pretrained(repo, **options)


@pytest.fixture
def api(hub: LoopbackHub) -> HfApi:
    return HfApi(token=WRITE)


@pytest.fixture
def pushed(hub: LoopbackHub) -> Plain:
    """An SAE that is on the Hub as alice/sae."""
    sae = small_sae()
    sae.push_to_hub(ID, token=WRITE)
    hub.requests.clear()
    return sae


def test_without_the_fixture_a_test_is_offline():
    with pytest.raises(OfflineModeIsEnabled):
        HfApi().model_info("alice/none")


def test_each_test_gets_an_empty_hub_and_an_empty_cache(hub):
    assert (hub.repos, hub.requests, hub.faults, hub.waits) == ({}, [], [], [])
    with pytest.raises(LocalEntryNotFoundError):
        hf_hub_download(ID, "config.json", local_files_only=True)


def test_what_is_pushed_loads_from_the_hub_with_the_same_weights(hub, pushed):
    assert hub.list_files(ID) == PUSHED
    assert json.loads(hub.read_file(ID, "config.json"))["d_sae"] == 8
    assert same(load(), pushed)
    assert [(r.method, r.status) for r in hub.seen(path="model.safetensors")] == [("HEAD", 302)]
    assert [(r.method, r.status) for r in hub.seen(origin="cdn")] == [("GET", 200)]


def test_a_second_load_comes_from_the_cache(hub, pushed):
    load()
    hub.requests.clear()
    assert same(load(), pushed)
    assert [(r.method, r.path) for r in hub.seen()] == [("GET", f"/api/models/{ID}")]
    assert same(load(local_files_only=True), pushed)


def test_the_token_does_not_reach_the_cdn(hub):
    small_sae().push_to_hub(ID, token=WRITE, private=True)
    load(token=READ)
    assert [r.method for r in hub.seen(origin="cdn")] == ["PUT", "GET"]
    assert not any("authorization" in r.headers for r in hub.seen(origin="cdn"))
    assert {r.user.name for r in hub.seen("POST", "commit") + hub.seen("HEAD")} == {"alice"}


def test_a_branch_a_tag_a_commit_and_a_pull_request_are_revisions(hub, api, pushed):
    api.create_tag(ID, tag="v1")
    second, third = small_sae(1), small_sae(2)
    second.push_to_hub(ID, token=WRITE, revision="dev")
    proposal = third.push_to_hub(ID, token=WRITE, create_pr=True)
    assert proposal.pr_revision == "refs/pr/1"
    refs = api.list_repo_refs(ID, include_pull_requests=True)
    assert {branch.name for branch in refs.branches} == {"main", "dev"}
    assert [tag.name for tag in refs.tags] == ["v1"]
    assert [pull.ref for pull in refs.pull_requests] == ["refs/pr/1"]
    dev = hub.repos["models", ID].refs["refs/heads/dev"]
    revisions = {"main": pushed, "v1": pushed, "dev": second, dev: second, "refs/pr/1": third}
    for revision, sae in revisions.items():
        assert same(load(revision=revision), sae)
    api.delete_branch(ID, branch="dev")
    api.delete_tag(ID, tag="v1")
    assert list(hub.repos["models", ID].refs) == ["refs/heads/main", "refs/pr/1"]
    with pytest.raises(HfHubHTTPError, match="Reference already exists"):
        api.create_branch(ID, branch="main")


def test_several_saes_lie_in_subfolders(hub, api, tmp_path):
    saes = {f"layers.{i}/width_8": small_sae(i) for i in range(3)}
    for name, sae in saes.items():
        sae.save_pretrained(tmp_path / "up" / name)
    api.create_repo(ID)
    api.upload_folder(repo_id=ID, folder_path=tmp_path / "up", commit_message="all layers")
    for name, sae in saes.items():
        assert same(load(subfolder=name), sae)
    assert [commit.title for commit in api.list_repo_commits(ID)] == [
        "all layers",
        "initial commit",
    ]


def test_a_card_is_checked_and_survives_the_next_push(hub, api, pushed):
    ModelCard("---\nlicense: mit\n---\nA small SAE.").push_to_hub(ID, token=WRITE)
    small_sae(1).push_to_hub(ID, token=WRITE, tags=["sae"])
    assert b"A small SAE." in hub.read_file(ID, "README.md")
    assert ModelCard.load(ID).data.tags == ["sae"]
    with pytest.raises(ValueError, match=r"Invalid metadata in README\.md"):
        api.upload_file(
            repo_id=ID, path_in_repo="README.md", path_or_fileobj=b"---\ntags: word\n---\n"
        )


def test_a_commit_adds_and_deletes_at_once_and_pushing_again_is_no_commit(hub, api, pushed):
    def notes() -> list:
        return [CommitOperationAdd(f"notes/{i:02}.txt", b"%d" % i) for i in range(12)]

    api.create_commit(ID, [*notes(), CommitOperationDelete("README.md")], commit_message="m")
    assert "README.md" not in hub.list_files(ID) and hub.read_file(ID, "notes/07.txt") == b"7"
    hub.page_size = 5
    tree = api.list_repo_tree(ID, recursive=True)
    assert len(list(tree)) == 12 + 1 + 3  # notes/ and what was pushed without the card
    assert len(hub.seen("GET", "/tree/")) == 4
    assert {item.path for item in api.list_repo_tree(ID)} == {"notes", *PUSHED} - {"README.md"}
    assert [info.path for info in api.get_paths_info(ID, ["notes/01.txt", "no"])] == [
        "notes/01.txt"
    ]
    copy = snapshot_download(ID, allow_patterns="notes/*")
    assert sorted(path.name for path in Path(copy, "notes").iterdir())[-1] == "11.txt"
    before = len(hub.repos["models", ID].commits)
    api.create_commit(ID, notes(), commit_message="again")
    assert len(hub.repos["models", ID].commits) == before
    api.create_commit(ID, [CommitOperationDelete("notes/", is_folder=True)], commit_message="d")
    assert hub.list_files(ID) == [".gitattributes", "config.json", "model.safetensors"]


def test_a_commit_on_top_of_an_old_one_is_refused(hub, api, pushed):
    parent = api.model_info(ID).sha
    for name, refused in (("a.txt", False), ("b.txt", True)):
        upload = {"repo_id": ID, "path_in_repo": name, "path_or_fileobj": b"x"}
        if refused:
            with pytest.raises(HfHubHTTPError, match="412"):
                api.upload_file(**upload, parent_commit=parent)
        else:
            api.upload_file(**upload, parent_commit=parent)
    assert "a.txt" in hub.list_files(ID) and "b.txt" not in hub.list_files(ID)


def test_repositories_are_made_listed_moved_and_deleted(hub, api):
    api.create_repo("acme/one")
    assert api.create_repo("acme/one", exist_ok=True) == f"{hub.url}/acme/one"
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_repo("acme/one")
    api.create_repo("two", private=True)
    api.create_repo("app", repo_type="space", space_sdk="gradio")
    assert set(hub.repos) == {
        ("models", "acme/one"),
        ("models", "alice/two"),
        ("spaces", "alice/app"),
    }
    assert [info.id for info in api.list_models(author="alice")] == ["alice/two"]
    assert [info.id for info in api.list_models(token=OTHER)] == ["acme/one"]
    api.move_repo("acme/one", "acme/three")
    assert api.repo_exists("acme/three") and not api.repo_exists("acme/one")
    api.delete_repo("acme/three")
    api.delete_repo("acme/three", missing_ok=True)
    with pytest.raises(RepositoryNotFoundError):
        api.delete_repo("acme/three")


def test_part_of_a_file_can_be_read(hub, pushed):
    metadata = get_safetensors_metadata(ID)
    assert sum(metadata.parameter_count.values()) == sum(p.numel() for p in pushed.parameters())
    assert [r.status for r in hub.seen("GET", origin="cdn")] == [206]


def test_any_file_name_and_bytes_can_be_put_there(hub, api):
    hub.add_file(ID, "../evil.txt", b"x")
    hub.add_file(ID, "a\nb: c.txt", b"\xff\xfe")
    hub.add_file(ID, "texts.parquet", b"not parquet", kind="datasets")
    assert api.list_repo_files(ID) == ["../evil.txt", ".gitattributes", "a\nb: c.txt"]
    assert Path(hf_hub_download(ID, "a\nb: c.txt")).read_bytes() == b"\xff\xfe"
    assert api.dataset_info(ID).siblings[1].rfilename == "texts.parquet"


def test_a_data_set_is_pushed_loaded_and_streamed_from_the_loopback_only(hub, monkeypatch):
    datasets = pytest.importorskip("datasets")
    hosts, look_up = [], socket.getaddrinfo
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda *a, **k: hosts.append(a[0]) or look_up(*a, **k)
    )
    texts = {"text": [f"line {i}" for i in range(50)]}
    datasets.Dataset.from_dict(texts).push_to_hub("alice/texts", token=WRITE)
    assert "data/train-00000-of-00001.parquet" in hub.list_files("alice/texts", kind="datasets")
    assert datasets.load_dataset("alice/texts", split="train")["text"] == texts["text"]
    hub.requests.clear()
    stream = datasets.load_dataset("alice/texts", split="train", streaming=True)
    assert [row["text"] for row in stream] == texts["text"]
    assert {r.status for r in hub.seen("GET", origin="cdn")} == {206}
    assert set(hosts) <= {"127.0.0.1"}


def test_a_recipes_text_is_read_from_a_data_set_on_the_hub(hub):
    datasets = pytest.importorskip("datasets")
    texts = {"text": [f"document {i} of the Hub" for i in range(60)]}
    datasets.Dataset.from_dict(texts).push_to_hub("alice/texts", token=WRITE)
    for streaming in (True, False):
        args = TextArguments(dataset="alice/texts", held_out_fraction=0.3, streaming=streaming)
        train, held_out = ([d.text for d in documents(args, s)] for s in ("train", "test"))
        assert sorted(train + held_out) == sorted(texts["text"]) and train and held_out
    with pytest.raises(ValueError, match="text_column to one of"):
        list(documents(TextArguments(dataset="alice/texts", text_column="body"), "train"))
    with pytest.raises(ValueError, match="'alice/nothing' cannot be found"):
        list(documents(TextArguments(dataset="alice/nothing"), "train"))


def test_another_process_uses_the_same_hub(hub, pushed, tmp_path):
    code = "from huggingface_hub import HfApi as A; print(A().whoami()['name'], A().endpoint)"
    done = hub.run_python("-c", code, home=tmp_path, token=OTHER)
    assert done.stdout.split() == ["bob", hub.url], done.stderr


# -- who may do what --


def test_a_private_repository_is_there_for_its_owner_only(hub, tmp_path):
    sae = small_sae()
    sae.push_to_hub(ID, token=WRITE, private=True)
    assert hub.repos["models", ID].private
    assert same(load(token=READ), sae)
    for token in (False, OTHER):
        with pytest.raises(RepositoryNotFoundError):
            HfApi().model_info(ID, token=token)
        with pytest.raises(OSError, match="is not a valid model identifier") as error:
            load(token=token, cache_dir=tmp_path / str(token))
        assert isinstance(error.value.__cause__, RepositoryNotFoundError)


def test_a_gated_repository_shows_itself_but_not_its_files(hub, api, pushed):
    api.update_repo_settings(ID, gated="manual")
    assert HfApi().model_info(ID, token=OTHER).gated == "manual"
    with pytest.raises(GatedRepoError):
        hf_hub_download(ID, "config.json", token=OTHER)
    with pytest.raises(OSError, match="gated repo") as error:
        load(token=OTHER)
    assert isinstance(error.value.__cause__, GatedRepoError)
    assert same(load(token=READ), pushed)


def test_a_token_is_wrong_or_reads_or_writes(hub, api, pushed):
    assert api.whoami()["name"] == "alice" and api.whoami()["orgs"][0]["name"] == "acme"
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        api.whoami(token=WRONG)
    refusals = {
        WRONG: (401, "Invalid credentials in Authorization header"),
        False: (401, "Invalid username or password"),
        READ: (403, "You don't have the rights"),
        OTHER: (403, "You don't have the rights"),
    }
    for token, (status, reason) in refusals.items():
        with pytest.raises(HfHubHTTPError, match=reason) as error:
            small_sae().push_to_hub(ID, token=token)
        assert error.value.response.status_code == status
        assert not isinstance(error.value, RepositoryNotFoundError)
    with pytest.raises(OSError, match="Invalid credentials in Authorization header"):
        load(token=WRONG)
    assert len(hub.repos["models", ID].commits) == 2


def test_what_is_not_there_is_named(hub, pushed):
    with pytest.raises(RepositoryNotFoundError):
        HfApi().model_info("alice/none")
    with pytest.raises(RevisionNotFoundError):
        hf_hub_download(ID, "config.json", revision="none")
    with pytest.raises(EntryNotFoundError):
        hf_hub_download(ID, "none.json")
    with pytest.raises(OSError, match="is not a valid model identifier"):
        load("alice/none")
    with pytest.raises(OSError, match="not a valid git identifier"):
        load(revision="none")
    with pytest.raises(ValueError, match="Should have a `model_type` key"):
        load(subfolder="none")  # AutoModel misleads


# -- faults --


def test_an_upload_that_is_cut_is_tried_again(hub):
    sae = small_sae(d_in=64, d_sae=512)
    hub.faults.append(Fault("PUT", UPLOADS, "cut_upload", times=2, at=100_000))
    sae.push_to_hub(ID, token=WRITE)
    assert [r.fault for r in hub.seen("PUT", UPLOADS)] == ["cut_upload", "cut_upload", None]
    assert hub.waits == [1, 2]
    assert same(load(), sae)


def test_an_upload_that_is_always_cut_leaves_the_repository_as_it_was(hub):
    sae = small_sae(d_in=64, d_sae=512)
    hub.faults.append(Fault("PUT", UPLOADS, "cut_upload", times=None, at=100_000))
    with pytest.raises(RuntimeError, match=r"Error while uploading 'model\.safetensors'") as error:
        sae.push_to_hub(ID, token=WRITE)
    assert isinstance(error.value.__cause__, HTTPError)
    assert len(hub.seen("PUT", UPLOADS)) == 6 and hub.list_files(ID) == [".gitattributes"]
    hub.faults.clear()
    sae.push_to_hub(ID, token=WRITE)
    assert same(load(), sae)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_hub_is_asked_again_by_all_but_create_and_commit(hub, status):
    paths = ("/preupload/", "/objects/batch", UPLOADS, "/verify")
    hub.faults = [Fault("*", path, "status", status=status) for path in paths]
    small_sae().push_to_hub(ID, token=WRITE)
    assert hub.list_files(ID) == PUSHED and len(hub.waits) == 4
    for path in ("/repos/create", "/commit/"):
        hub.faults = [Fault("POST", path, "status", status=status)]
        with pytest.raises(HfHubHTTPError, match=str(status)):
            small_sae(1).push_to_hub(ID, token=WRITE)
    assert len(hub.waits) == 4 and len(hub.repos["models", ID].commits) == 2


def test_a_busy_hub_says_how_long_to_wait(hub, pushed):
    hub.faults.append(Fault("GET", DOWNLOADS, "status", status=429, retry_after=7))
    assert same(load(), pushed)
    assert hub.waits == [8.0]  # the client adds a second


def test_a_commit_whose_answer_is_lost_has_landed_all_the_same(hub):
    hub.faults.append(Fault("POST", "/commit/", "cut_reply"))
    with pytest.raises(HTTPError):
        small_sae().push_to_hub(ID, token=WRITE)
    assert hub.list_files(ID) == PUSHED
    again = small_sae().push_to_hub(ID, token=WRITE)
    assert len(hub.repos["models", ID].commits) == 2
    assert again.oid == hub.repos["models", ID].refs["refs/heads/main"]


def test_a_download_that_is_cut_goes_on_where_it_stopped(hub):
    """The client keeps what came in pieces of 10 MB."""
    sae = small_sae(d_in=64, d_sae=25_000)
    sae.push_to_hub(ID, token=WRITE)
    hub.faults.append(Fault("GET", DOWNLOADS, "truncate", at=12_000_000))
    assert same(load(), sae)
    assert [r.status for r in hub.seen("GET", DOWNLOADS)] == [200, 206]


def test_a_download_that_is_always_cut_is_an_error_that_misleads(hub, pushed):
    hub.faults.append(Fault("GET", DOWNLOADS, "truncate", times=None, at=100))
    with pytest.raises(HTTPError):
        hf_hub_download(ID, "model.safetensors")
    with pytest.raises(OSError, match=r"pytorch_model\.bin"):
        load()
    hub.faults.clear()
    assert same(load(), pushed)


def test_one_wrong_byte_of_the_weights_is_not_noticed_by_the_client(hub, api, pushed):
    hub.faults.append(Fault("GET", DOWNLOADS, "corrupt", at=-2))
    assert not same(load(), pushed)
    mismatches = api.verify_repo_checksums(ID).mismatches
    assert [mismatch["path"] for mismatch in mismatches] == ["model.safetensors"]
    assert not same(load(), pushed)  # it stays in the cache
    assert same(load(force_download=True), pushed)


def test_one_wrong_byte_at_the_start_of_a_file_is_an_error(hub, pushed):
    hub.faults.append(Fault("GET", "config.json", "corrupt"))
    with pytest.raises(OSError, match="not a valid JSON file"):
        load()
    hub.faults.append(Fault("GET", DOWNLOADS, "corrupt", at=0))
    with pytest.raises(SafetensorError):
        load(force_download=True)


def test_a_hub_that_is_down_does_not_matter_to_what_is_cached(hub, pushed, tmp_path):
    load()
    hub.faults.append(Fault("*", "", "status", times=None))
    assert same(load(), pushed)
    with pytest.raises(OSError, match="couldn't connect to"):
        load(cache_dir=tmp_path / "empty")


def test_a_hub_that_is_not_there_is_named_after_all_retries(unreachable_hub):
    with pytest.raises(HTTPError, match="refused"):
        HfApi().model_info(ID)
    with pytest.raises(OSError, match=f"couldn't connect to '{unreachable_hub.url}'"):
        load()
    assert unreachable_hub.waits and unreachable_hub.requests == []
