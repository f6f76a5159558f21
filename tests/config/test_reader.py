"""Reading YAML: types as people write them, errors that name file, line and key."""

import sys
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import Field, model_validator

from lib.avatars.gaussian_head_avatar.gaussian_stage import GaussianHeadTrainConfig
from lib.avatars.gaussian_head_avatar.mesh_stage import MeshHeadTrainConfig
from lib.config import Config, parse_arguments, read_config, write_config
from lib.config.reader import Arguments
from lib.errors import InputError


class Inner(Config):
    """A section."""

    rate: float = Field(0.5, description="a number")
    resolution: int = Field(8, gt=0, description="pixels")
    cameras: tuple[str, ...] = Field((), description="names")

    @model_validator(mode="after")
    def _rule(self) -> "Inner":
        if self.rate > 10:
            raise ValueError(f"rate ({self.rate}) must be at most 10")
        return self


class Outer(Config):
    """A file."""

    name: str = Field("x", description="a name")
    needed: int = Field(description="has no default")
    inner: Inner = Inner()
    maybe: Inner | None = Field(None, description="optional section")


def read(folder: Path, text: str, *overrides: str, schema: type[Config] = Outer):
    path = folder / "file.yaml"
    path.write_text(text)
    return read_config(Arguments(path, overrides), schema)


def message(folder: Path, text: str, *overrides: str, schema: type[Config] = Outer) -> str:
    with pytest.raises(InputError) as error:
        read(folder, text, *overrides, schema=schema)
    return str(error.value)


def test_a_typo_comes_before_what_it_left_missing_and_another_scripts_file_is_called_that(tmp_path):
    assert [line.partition(": ")[2] for line in message(tmp_path, "needde: 1\n").splitlines()] == [
        "needde: unknown key; did you mean 'needed'?", "needed: required key is missing"]
    said = message(tmp_path, "needed: 1\nsupresmodule: 1\nother:\n  rate: 1\n").splitlines()
    assert said[-1] == f"2 keys that this script does not know: is {tmp_path / 'file.yaml'} the YAML of another one?"
    assert not any("did you mean" in line for line in said)
    assert "YAML of another one" not in message(tmp_path, "needed: 1\n", "foo=1", "bar=2")


def test_broken_yaml_is_told_with_its_line(tmp_path):
    said = message(tmp_path, "needed: 1\ninner:\n\trate: 1\n")
    assert said.startswith(f"{tmp_path / 'file.yaml'}:3: not valid YAML: while scanning for the next token found character '\\t'")


def test_unknown_key_names_line_key_and_nearest_match(tmp_path):
    said = message(tmp_path, "needed: 1\ninner:\n  rate: 1\n  resolutoin: 3\n")
    assert f"{tmp_path / 'file.yaml'}:4: inner.resolutoin: unknown key; did you mean 'resolution'?" in said


def test_unknown_key_in_an_optional_section(tmp_path):
    assert "file.yaml:3: maybe.raet: unknown key; did you mean 'rate'?" in message(tmp_path, "needed: 1\nmaybe:\n  raet: 3\n")


def test_unknown_key_like_nothing_lists_what_is_known(tmp_path):
    said = message(tmp_path, "needed: 1\ninner:\n  zzzzzz: 3\n")
    assert "inner.zzzzzz: unknown key" in said and "rate" in said and "resolution" in said


def test_unknown_section(tmp_path):
    assert "file.yaml:2: iner: unknown key; did you mean 'inner'?" in message(tmp_path, "needed: 1\niner:\n  rate: 3\n")


def test_all_errors_of_a_file_are_reported_together(tmp_path):
    said = message(tmp_path, "needed: x\ninner:\n  resolutoin: 3\n  rate: y\n").splitlines()
    assert len(said) == 3
    assert sorted(line.split(":")[1] for line in said) == ["1", "3", "4"]


@pytest.mark.parametrize(("line", "key", "found"), [
    ("  rate: fast", "inner.rate", "'fast'"),
    ("  resolution: 2.5", "inner.resolution", "2.5"),
    ("  resolution: -1", "inner.resolution", "-1"),
    ("  cameras: 5", "inner.cameras", "5"),
])
def test_wrong_type_names_line_key_and_what_was_found(tmp_path, line, key, found):
    said = message(tmp_path, f"needed: 1\ninner:\n{line}\n")
    assert f"file.yaml:3: {key}: " in said and f"found {found}" in said


def test_wrong_item_of_a_list_names_its_line(tmp_path):
    said = message(tmp_path, "needed: 1\ninner:\n  cameras:\n  - a\n  - [b]\n")
    assert "file.yaml:5: inner.cameras.1: " in said


def test_section_where_a_value_is_given(tmp_path):
    assert "file.yaml:2: inner: " in message(tmp_path, "needed: 1\ninner: 3\n")


def test_missing_required_key(tmp_path):
    said = message(tmp_path, "name: a\n")
    assert "file.yaml" in said and "needed: required key is missing" in said


def test_rule_of_a_section_names_the_section(tmp_path):
    assert "file.yaml:2: inner: rate (11.0) must be at most 10" in message(tmp_path, "needed: 1\ninner:\n  rate: 11\n")


@pytest.mark.parametrize(("text", "value"), [("1e-3", 1e-3), ("1E1", 10.0), ("2.5e-4", 2.5e-4), (".5", 0.5), ("-3", -3.0), ("1.", 1.0)])
def test_numbers_as_people_write_them(tmp_path, text, value):
    assert read(tmp_path, f"needed: 1\ninner:\n  rate: {text}\n").inner.rate == value


@pytest.mark.parametrize("name", ["0010", "'0010'", "222200036", "'222200036'", "08", "cam_1", "1_2", "1.10", "222e4", "3.", "2024-05-01"])
def test_camera_names_stay_as_written(tmp_path, name):
    assert read(tmp_path, f"needed: 1\ninner:\n  cameras: [{name}]\n").inner.cameras == (name.strip("'"),)


@pytest.mark.parametrize("name", ["31", "1.10", "2024-05-01", "1e5"])
def test_folders_and_runs_may_be_called_like_numbers(tmp_path, name):
    config = read(tmp_path, f"dataset: {{dataroot: {name}}}\nrecorder: {{name: {name}}}\n", f"load_meshhead_checkpoint={name}",
                  schema=MeshHeadTrainConfig)
    assert (config.dataset.dataroot, config.load_meshhead_checkpoint, config.recorder.name) == (Path(name), Path(name), name)


def test_leading_zeros_survive_an_override(tmp_path):
    assert read(tmp_path, "needed: 1\n", "inner.cameras=[0010, 222200036]").inner.cameras == ("0010", "222200036")


def test_key_given_twice_names_both_lines(tmp_path):
    said = message(tmp_path, "needed: 1\ninner:\n  rate: 1\n  resolution: 2\n  rate: 3\n")
    assert "file.yaml:5: inner.rate: key given twice" in said and "file.yaml:3" in said


def test_the_same_key_in_two_sections_is_no_repetition(tmp_path):
    config = read(tmp_path, "needed: 1\ninner: {rate: 1}\nmaybe: {rate: 2}\n")
    assert (config.inner.rate, config.maybe.rate) == (1, 2)


def test_merge_keys_may_be_overridden_as_yaml_defines(tmp_path):
    config = read(tmp_path, "needed: 1\ninner: &base {rate: 1, resolution: 4}\nmaybe:\n  <<: *base\n  rate: 2\n")
    assert (config.maybe.rate, config.maybe.resolution) == (2, 4)


@pytest.mark.parametrize("text", ["needed: [1", "a: b: c", "\tneeded: 1", "needed: 1\n  inner: 2", "a: &x 1\nb: *y", "{[1]: 2", "--- 1\n--- 2"])
def test_broken_yaml_names_the_file(tmp_path, text):
    said = message(tmp_path, text)
    assert "file.yaml" in said and len(said.splitlines()) == 1


@pytest.mark.parametrize("text", ["- 1\n- 2\n", "hello", "3"])
def test_a_file_that_is_no_mapping(tmp_path, text):
    assert "file.yaml: expected `key: value` lines" in message(tmp_path, text)


def test_yaml_that_would_build_objects_is_refused(tmp_path):
    mark = tmp_path / "executed"
    said = message(tmp_path, f"needed: !!python/object/apply:os.mkdir ['{mark}']\n")
    assert "file.yaml" in said and not mark.exists()


def test_empty_file_misses_its_required_keys(tmp_path):
    assert "needed: required key is missing" in message(tmp_path, "")


@pytest.mark.parametrize("make", [lambda p: None, lambda p: p.mkdir(), lambda p: p.write_bytes(b"\xff\xfe\x00\x81")],
                         ids=["missing", "folder", "binary"])
def test_unreadable_file(tmp_path, make):
    path = tmp_path / "other.yaml"
    make(path)
    with pytest.raises(InputError, match=r"other\.yaml"):
        read_config(Arguments(path, ()), Outer)


def test_overrides_replace_and_create(tmp_path):
    config = read(tmp_path, "needed: 1\ninner:\n  rate: 1\n", "inner.rate=1e-3", "needed=7", "maybe.resolution=5", "inner.cameras=[a, b]")
    assert (config.inner.rate, config.needed, config.inner.cameras) == (1e-3, 7, ("a", "b"))
    assert config.maybe is not None and config.maybe.resolution == 5


def test_later_override_wins(tmp_path):
    assert read(tmp_path, "needed: 1\n", "needed=2", "needed=3").needed == 3


def test_override_into_an_empty_section(tmp_path):
    assert read(tmp_path, "needed: 1\ninner:\n", "inner.rate=2").inner.rate == 2


@pytest.mark.parametrize(("override", "part"), [
    ("inner.raet=1", "inner.raet: unknown key; did you mean 'rate'?"),
    ("inner.rate=fast", "inner.rate"),
    ("rate", "expected key=value"),
    ("=3", "expected key=value"),
    ("needed.deep=3", "'needed' is not a section"),
    ("inner.rate=[1", "inner.rate"),
    ("nowhere.at.all=3", "nowhere"),
    ("needed=!!timestamp 2001-99-99", "needed: not a YAML value"),
    ("needed=" + "[" * 9000, "nested too deeply"),
    ("needed=!!timestamp x", "needed: not a YAML value"),
    ("inner.rate=.inf", "inner.rate: input should be a finite number"),
])
def test_bad_override_says_command_line(tmp_path, override, part):
    said = message(tmp_path, "needed: 1\n", override)
    assert said.startswith("command line: ") and part in said


def read_both(folder: Path, first: str, second: str, *overrides: str):
    (folder / "first.yaml").write_text(first)
    (folder / "second.yaml").write_text(second)
    return read_config(Arguments(folder / "first.yaml", overrides, (folder / "second.yaml",)), Outer)


def test_a_later_file_replaces_single_keys_and_the_command_line_replaces_both(tmp_path):
    config = read_both(tmp_path, "needed: 1\ninner: {rate: 1, cameras: [a, b]}\n", "inner: {cameras: [c], resolution: 4}\n", "inner.resolution=5")
    assert config == Outer(needed=1, inner=Inner(rate=1, cameras=("c",), resolution=5))


def test_a_later_file_leaves_other_sections_of_an_anchor_alone(tmp_path):
    config = read_both(tmp_path, "needed: 1\ninner: &base {rate: 1}\nmaybe: *base\n", "inner: {rate: 2}\n")
    assert (config.inner.rate, config.maybe.rate) == (2, 1)


def test_the_command_line_leaves_other_sections_of_an_anchor_alone(tmp_path):
    config = read(tmp_path, "needed: 1\ninner: &base {rate: 1}\nmaybe: *base\n", "inner.rate=2")
    assert (config.inner.rate, config.maybe.rate) == (2, 1)


class Place(Config):
    """A path."""

    folder: Path = Field(description="a folder")


def test_a_path_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    for text, overrides in (("folder: ~/runs\n", ()), ("folder: x\n", ("folder=~/runs",))):
        assert read(tmp_path, text, *overrides, schema=Place).folder == Path("/home/me/runs")
    assert read(tmp_path, "folder: a~b\n", schema=Place).folder == Path("a~b")


@pytest.mark.parametrize(("second", "said"), [
    ("inner:\n  raet: 1\n", r"second\.yaml:2: inner\.raet: unknown key; did you mean 'rate'\?"),
    ("inner: {rate: fast}\n", r"second\.yaml:1: inner\.rate: .*'fast'"),
    ("inner: 3\n", r"second\.yaml:1: inner: "),
    ("name: z\n", r"first\.yaml:2: inner\.resolution: "),
])
def test_errors_name_the_file_that_holds_the_key(tmp_path, second, said):
    with pytest.raises(InputError, match=said):
        read_both(tmp_path, "needed: 1\ninner: {resolution: -1}\n", second)


def test_the_command_line_takes_files_in_order_and_profile_only_where_a_script_trains():
    words = ["script.py", "--config", "a.yaml", "needed=2", "--config", "b.yaml", "--config", "c.yaml"]
    with mock.patch.object(sys, "argv", [*words, "--profile"]):
        assert parse_arguments("x", training=True) == Arguments(Path("a.yaml"), ("needed=2",), (Path("b.yaml"), Path("c.yaml")), True)
        with pytest.raises(SystemExit):
            parse_arguments("x")
    with mock.patch.object(sys, "argv", words):
        assert not parse_arguments("x", training=True).profile and not parse_arguments("x").profile


def test_configurations_cannot_be_changed(tmp_path):
    config = read(tmp_path, "needed: 1\n")
    with pytest.raises(Exception, match="frozen"):
        config.needed = 2


names = st.text(st.sampled_from("0123456789eE.-_+ax:#'"), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(name=st.text(min_size=1, max_size=8), cameras=st.lists(names, max_size=3), rate=st.floats(-1e9, 10, allow_nan=False), number=st.integers())
@example(name="0010", cameras=["0010", "222200036", "08", "0x1F"], rate=1e-5, number=0)
@example(name="no", cameras=["1:30", "null", "~", "true"], rate=-0.0, number=1)
@example(name="1e5", cameras=["1e5", "12e3"], rate=3.0, number=-1)
def test_write_then_read_is_the_identity(tmp_path_factory, name, cameras, rate, number):
    path = tmp_path_factory.getbasetemp() / "round_trip.yaml"
    config = Outer(name=name, needed=number, inner=Inner(rate=rate, cameras=tuple(cameras)))
    write_config(config, path)
    assert read_config(Arguments(path, ()), Outer) == config


@pytest.mark.parametrize("schema", [MeshHeadTrainConfig, GaussianHeadTrainConfig])
def test_a_real_configuration_survives_the_round_trip(tmp_path, schema):
    config = schema.model_validate({
        "dataset": {"dataroot": tmp_path, "camera_ids": ["0010", 222200036], "held_out_sequences": ["SEN-01-talk"]},
        "recorder": {"name": "031"}, "lr_net": 1e-5, "meshheadmodule": {"dist_threshold_far": 0.25, "grid_file": "a/b.npz"},
    })
    write_config(config, tmp_path / "resolved.yaml")
    assert read_config(Arguments(tmp_path / "resolved.yaml", ()), schema) == config
