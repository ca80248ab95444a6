"""`mlxmtp connect`: every client's settings, and files that keep their other settings."""

import json
import stat
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from mlxmtp.cli import connect
from mlxmtp.cli.connect import clients, filled, in_quotes
from mlxmtp.cli.served import Served
from mlxmtp.cli.settings_file import NAMES, parse_json
from tests.cli.conftest import Ran, assert_refused

ISSUE = ("claude", "codex", "opencode", "pi", "aider", "qwen", "cline", "continue", "zed", "llm", "open-webui",
         "mini-swe-agent", "crush")  # fmt: skip
PARSERS = {"json": json.loads, "toml": tomllib.loads, "yaml": yaml.safe_load}
VALUES = {"url": "http://10.0.0.9:81", "model": "mine", "key": "sk-1", "context": "5000", "output": "1250"}
HOSTILE = VALUES | {"model": 'a"b\\c: #{key} ü', "key": "'; rm -rf ~ #\"$(x)"}
FILES = [(name, file) for name, client in clients().items() for file in client.files]
each_client = pytest.mark.parametrize("name", ISSUE)
each_file = pytest.mark.parametrize(("name", "file"), FILES, ids=[f"{name}-{file.path}" for name, file in FILES])
WITH_FILES = sorted({name for name, _ in FILES})


@pytest.fixture(autouse=True)
def served(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server of 32,768 tokens answers."""
    monkeypatch.setattr(connect, "ask", lambda *_: Served("mlxmtp", 32768))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def written(home: Path, main_: Callable[..., Ran]) -> Callable[..., Ran]:
    """written(client, *options): `mlxmtp connect CLIENT --write` in an empty home."""
    return lambda client, *options: main_("connect", client, "--write", *options)


def strings(value: object) -> list[str]:
    """Yield all keys and values of a tree."""
    if isinstance(value, dict):
        return [*value, *(text for one in value.values() for text in strings(one))]
    if isinstance(value, list):
        return [text for one in value for text in strings(one)]
    return [str(value)]


def tree(home: Path) -> dict[str, bytes]:
    return {str(path.relative_to(home)): path.read_bytes() for path in home.rglob("*") if path.is_file()}


def test_the_table_is_the_issues() -> None:
    assert tuple(clients()) == ISSUE


def test_without_a_client_it_lists_them(home: Path, main_: Callable[..., Ran]) -> None:
    ran = main_("connect")
    assert (ran.code, ran.err) == (0, "")
    assert [line.split()[0] for line in ran.out.splitlines()] == list(ISSUE)


@each_file
@pytest.mark.parametrize("values", [VALUES, HOSTILE], ids=["plain", "hostile"])
def test_content_is_valid_and_has_the_values(name: str, file: connect.SettingsFile, values: dict[str, str]) -> None:
    found = strings(PARSERS[file.format](filled(file.content, values, in_quotes)))
    assert "{" not in " ".join(found).replace(values["model"], "")
    assert any(values["model"] in text for text in found)
    if "{url}" in file.content:
        assert {values["url"], f"{values['url']}/v1"} & set(found)
    if "{key}" in file.content:
        assert values["key"] in found


@each_file
def test_entries_of_lists_can_be_told_apart(name: str, file: connect.SettingsFile) -> None:
    def check(value: object) -> None:
        if isinstance(value, list) and any(isinstance(entry, dict) for entry in value):
            assert all(any(key in entry for key in NAMES) for entry in value)
        for one in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            check(one)

    check(PARSERS[file.format](filled(file.content, VALUES, in_quotes)))


@each_client
def test_printing_changes_nothing(name: str, home: Path, main_: Callable[..., Ran]) -> None:
    ran = main_("connect", name, "--url", VALUES["url"], "--model", "mine", "--context", "5000", "--api-key", "sk-1")
    assert (ran.code, ran.err) == (0, "")
    client = clients()[name]
    for file in client.files:
        assert filled(file.content, VALUES, in_quotes).rstrip() in ran.out
        assert file.place in ran.out
    assert VALUES["url"] in ran.out
    assert "\nStart:  " in ran.out
    assert not tree(home)


def test_a_shell_gets_its_values_quoted(home: Path, main_: Callable[..., Ran]) -> None:
    out = main_("connect", "cline", "--api-key", "a b'c").out
    assert """--apikey 'a b'"'"'c' --modelid mlxmtp""" in out


@pytest.mark.parametrize("client", WITH_FILES)
def test_an_empty_home_gets_what_is_printed(client: str, home: Path, main_, written) -> None:
    printed = main_("connect", client).out
    ran = written(client)
    assert (ran.code, ran.err) == (0, "")
    for file in clients()[client].files:
        path = Path(file.place).expanduser()
        assert path.read_text().rstrip() in printed
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert f"{file.place}: written\n" in ran.out
    assert len(tree(home)) == len(clients()[client].files)


@pytest.mark.parametrize("client", WITH_FILES)
def test_the_second_time_there_is_nothing_to_change(client: str, home: Path, written) -> None:
    written(client)
    before = tree(home)
    ran = written(client)
    assert ran.code == 0
    assert ran.out.count(": nothing to change\n") == len(before)
    assert tree(home) == before


@pytest.mark.parametrize("client", WITH_FILES)
def test_other_values_replace_the_earlier_ones(client: str, home: Path, written) -> None:
    written(client)
    first = tree(home)
    assert written(client, "--url", "https://box:9/v1/", "--context", "4096").code == 0
    after = tree(home)
    for file in clients()[client].files:
        path = Path(file.place).expanduser()
        changed = PARSERS[file.format](path.read_text())
        wanted = VALUES | {"url": "https://box:9", "model": "mlxmtp", "key": "mlxmtp", "context": "4096"}
        assert changed == PARSERS[file.format](filled(file.content, wanted | {"output": "1024"}, in_quotes))
        name = str(path.relative_to(home))
        assert [after[other] for other in after if other.startswith(f"{name}.bak-")] == [first[name]]


FOREIGN = {
    "json": '{\n    "mine": [1, {"deep": "ü"}],\n    "env": {"OTHER": "1"},\n    "providers": {"x": {"models": []}},\n'
    '    "modelProviders": {"openai": [{"id": "gpt", "name": "x"}]},\n    "$schema": "theirs"\n}\n',
    "toml": '# theirs\napproval_policy = "never" # stays\n\n[model_providers.x]\nname = "x"\n\n[[rules]]\na = 1\n',
    "yaml": 'name: "theirs"  # stays\nauto-commits: false\nmodes:\n  - a\n',
}


@each_file
def test_foreign_settings_stay(name: str, file: connect.SettingsFile, home: Path, written) -> None:
    foreign = FOREIGN[file.format]
    if name == "llm":
        foreign = "# theirs\n- model_id: other\n  api_base: http://x/v1\n"
    path = Path(file.place).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(foreign)
    path.chmod(0o644)
    ran = written(name)
    assert (ran.code, ran.err) == (0, "")
    parse = PARSERS[file.format]
    assert lacks(parse(path.read_text()), parse(foreign)) == []
    ours = parse(filled(file.content, VALUES | {"url": connect.URL, "model": "mlxmtp", "key": "mlxmtp",
                                                "context": "32768", "output": "8192"}, in_quotes))  # fmt: skip
    kept = {key: value for key, value in ours.items() if key not in file.keep} if isinstance(ours, dict) else ours
    assert lacks(parse(path.read_text()), kept) == []
    assert ("# " in path.read_text()) == ("# " in foreign)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    (backup,) = path.parent.glob(f"{path.name}.bak-*")
    assert backup.read_text() == foreign
    assert f"as it was: {backup.name}" in ran.out
    again = path.read_bytes()
    written(name)
    assert path.read_bytes() == again


def lacks(there: object, wanted: object, where: str = "") -> list[str]:
    """Yield the paths at which a tree lacks a value of another."""
    if isinstance(wanted, dict) and isinstance(there, dict):
        return [
            place
            for key, value in wanted.items()
            for place in (lacks(there[key], value, f"{where}.{key}") if key in there else [f"{where}.{key}"])
        ]
    if isinstance(wanted, list) and isinstance(there, list):
        return [f"{where}: {value}" for value in wanted if not any(not lacks(one, value) for one in there)]
    return [] if there == wanted else [f"{where}: {there!r}, not {wanted!r}"]


def test_json_with_comments_keeps_them(home: Path, written) -> None:
    path = home / ".config/zed/settings.json"
    path.parent.mkdir(parents=True)
    lines = ['// theirs { "a": 1 }', "{", '  "theme": "http://x // no comment", // mine', '  "list": [1, 2,],', "}", ""]
    path.write_text("\r\n".join(lines), newline="")
    assert written("zed").code == 0
    text = path.read_bytes().decode()
    assert all(f"{line}\r\n" in text for line in (lines[0], *lines[2:-1]))
    found = parse_json(text)
    assert (found["theme"], found["list"]) == ("http://x // no comment", [1, 2])
    assert "mlxmtp" in found["language_models"]["openai_compatible"]


@pytest.mark.parametrize(
    ("client", "path", "text", "said"),
    [
        ("pi", ".pi/agent/models.json", '{"providers": ', "is not valid JSON: Expecting value: line 1"),
        ("pi", ".pi/agent/models.json", "[1]", "is a list there, and a table was expected"),
        ("pi", ".pi/agent/models.json", '{"providers": {"mlxmtp": "x"}}', "providers: mlxmtp is a plain value there"),
        ("pi", ".pi/agent/models.json", '{"providers": {"a": {}} /* x */}', "put in by hand"),
        ("codex", ".codex/mlxmtp.config.toml", "model = \n", "is not valid TOML: Invalid value (at line 1"),
        ("codex", ".codex/mlxmtp.config.toml", "model_providers = {mlxmtp = {name = 'x'}}\n", "put in by hand"),
        ("continue", ".continue/config.yaml", "models: [\n", "is not valid YAML: while parsing"),
        ("continue", ".continue/config.yaml", "models: # mine\n- name: a\n", "put in by hand"),
        ("aider", ".aider.conf.yml", "\xff", "cannot be read: it is not UTF-8 text"),
        ("aider", ".aider.model.metadata.json", "{", "is not valid JSON"),
    ],
)
def test_what_cannot_be_changed_stays(client, path, text, said, home: Path, written) -> None:
    (home / path).parent.mkdir(parents=True, exist_ok=True)
    (home / path).write_text(text, encoding="latin-1")
    before = tree(home)
    assert_refused(written(client), str(home / path), said)
    assert tree(home) == before


@pytest.mark.parametrize("text", ["", "\n", "{}", "{ }"])
def test_files_with_nothing_in_them(text: str, home: Path, written) -> None:
    path = home / ".claude/mlxmtp.json"
    path.parent.mkdir()
    path.write_text(text)
    assert written("claude").code == 0
    assert json.loads(path.read_text())["env"]["ANTHROPIC_BASE_URL"] == connect.URL


def test_a_folder_that_cannot_be_written(home: Path, written) -> None:
    (home / ".codex").write_text("a file where the folder should be")
    before = tree(home)
    assert_refused(written("codex"), "mlxmtp.config.toml", "cannot be")
    assert tree(home) == before


def test_a_file_that_cannot_be_replaced(home: Path, written, monkeypatch: pytest.MonkeyPatch) -> None:
    path = home / ".claude/mlxmtp.json"
    path.parent.mkdir()
    path.write_text("{}")

    def refused(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.replace", refused)
    assert_refused(written("claude"), "cannot be written: Permission denied; it is as it was")
    assert path.read_text() == "{}"
    assert not list(path.parent.glob(".*partial"))


def test_a_backup_replaces_no_other(home: Path, written, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.strftime", lambda _: "20260101-000000")
    for context in ("1000", "2000", "3000"):
        written("codex", "--context", context)
    folder = home / ".codex"
    copies = {path.name.split("bak-")[1]: tomllib.loads(path.read_text()) for path in folder.glob("*.bak-*")}
    windows = {name: copy["model_context_window"] for name, copy in copies.items()}
    assert windows == {"20260101-000000": 1000, "20260101-000000-1": 2000}


def test_a_link_stays_a_link(home: Path, written) -> None:
    (home / "dotfiles").mkdir()
    (home / "dotfiles/qwen.json").write_text('{"theirs": 1}')
    (home / ".qwen").mkdir()
    (home / ".qwen/settings.json").symlink_to(home / "dotfiles/qwen.json")
    assert written("qwen").code == 0
    assert (home / ".qwen/settings.json").is_symlink()
    assert json.loads((home / "dotfiles/qwen.json").read_text()).keys() == {"theirs", "env", "modelProviders"}


def test_opencodes_other_file_is_taken_where_it_is_the_only_one(home: Path, written) -> None:
    folder = home / ".config/opencode"
    folder.mkdir(parents=True)
    (folder / "opencode.jsonc").write_text('{\n  // mine\n  "theme": "x"\n}\n')
    assert "opencode.jsonc: written" in written("opencode").out
    assert "// mine" in (folder / "opencode.jsonc").read_text()
    (folder / "opencode.json").write_text("{}")
    assert "opencode.json: written" in written("opencode").out


def test_places_of_macos(home: Path, main_: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> None:
    for platform, place in (("darwin", "~/Library/Application Support/"), ("linux", "~/.config/")):
        monkeypatch.setattr(sys, "platform", platform)
        assert f"llm: {place}io.datasette.llm/extra-openai-models.yaml\n" in main_("connect", "llm").out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("claud",), "did you mean claude? known are: claude, codex, opencode"),
        (("claude-code",), "did you mean claude?"),
        (("emacs-lisp",), "unknown client 'emacs-lisp'; known are: claude"),
        (("--write",), "--write needs a CLIENT"),
        (("cline", "--write"), "no settings file that mlxmtp could write; see `mlxmtp connect cline`"),
        (("open-webui", "--write"), "no settings file"),
    ],
)
def test_wrong_orders(arguments: tuple[str, ...], said: str, home: Path, main_: Callable[..., Ran]) -> None:
    assert_refused(main_("connect", *arguments), said)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--url", "127.0.0.1:8080"),
        ("--url", "http://"),
        ("--url", "http://a:99999"),
        ("--url", "http://a b"),
        ("--url", "http://a/v1?x=1"),
        ("--context", "0"),
        ("--model", " "),
        ("--api-key", "a\nb"),
    ],
)
def test_wrong_values(option: str, value: str, home: Path, main_: Callable[..., Ran]) -> None:
    ran = main_("connect", "codex", option, value)
    assert (ran.code, ran.out) == (2, "")
    assert f"argument {option}: expected " in ran.err


@pytest.mark.parametrize(
    "url", ["http://h:1", "http://h:1/", "http://h:1/v1", "http://h:1/v1/", "http://h:1/v1/chat/completions"]
)
def test_the_address_is_taken_with_its_path_or_without(url: str, home: Path, main_: Callable[..., Ran]) -> None:
    assert 'base_url = "http://h:1/v1"' in main_("connect", "codex", "--url", url).out


def test_a_file_that_a_key_goes_into_is_nobody_elses_to_read(home: Path, written) -> None:
    path = Path(connect.clients()["codex"].files[0].place).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("")
    path.chmod(0o644)
    assert written("codex", "--api-key", "sk-secret").code == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_an_empty_home_is_none(home: Path, written, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "")
    ran = written("codex")
    assert ran.code == 2
    assert "this user has no home folder" in ran.err
