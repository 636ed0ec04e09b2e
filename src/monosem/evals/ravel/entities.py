"""Entity types of RAVEL (Huang et al. 2024, arXiv 2402.17700): what an instance is built from. Imports no torch.

A type has five JSON files in the authors' release (github.com/explanare/ravel, MIT): `ravel_{type}_entity_attributes`,
`ravel_{type}_attribute_to_prompts`, `ravel_{type}_entity_to_split`, `ravel_{type}_prompt_to_split` and
`wikipedia_{type}_entity_prompts`. They are read from a folder, or from an archive in memory (nothing is written).
"""

from __future__ import annotations

import json
import re
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from monosem.store import value_hash
from monosem.types import UserError

SPLITS = ("train", "val", "test")
FILES = {
    "attributes": "ravel_{}_entity_attributes.json",
    "templates": "ravel_{}_attribute_to_prompts.json",
    "entity_split": "ravel_{}_entity_to_split.json",
    "template_split": "ravel_{}_prompt_to_split.json",
    "other": "wikipedia_{}_entity_prompts.json",
}
LIMIT = 200_000_000  # bytes that an archive, or a file of a folder, may hold: the authors' is 2 MB
_KINDS = [re.compile(name.replace(".", r"\.").format("(.+)")) for name in FILES.values()]
_SAME_VALUE = {"non-living things": "non-living thing"}  # both spellings are in the authors' files

_BRITAIN = ["United Kingdom", "the United Kingdom", "UK", "the UK", "U.K.", "Britain", "Great Britain"]
_ALIASES = {
    "Austro-Bavarian German": ["German"],
    "Chinese": ["Mandarin"],
    "Czech Republic": ["Czechia", "the Czech Republic"],
    "Czechia": ["Czech Republic", "the Czech Republic"],
    "Dari": ["Persian"],
    "Democratic Republic of the Congo": ["the Democratic Republic of the Congo", "Congo", "DR Congo", "DRC"],
    "Dominican Republic": ["the Dominican Republic"],
    "Economics": ["Economic Sciences"],
    "Indonesian": ["Bahasa Indonesia"],
    "Ivory Coast": ["Côte d'Ivoire", "Cote d'Ivoire", "the Ivory Coast"],
    "Macedonia": ["North Macedonia"],
    "Malay": ["Bahasa Melayu"],
    "Mandarin": ["Chinese"],
    "Mandarin Chinese": ["Chinese", "Mandarin"],
    "Medicine": ["Physiology"],
    "Moldavian": ["Moldovan", "Romanian"],
    "Myanmar": ["Burma"],
    "Netherlands": ["the Netherlands", "Holland"],
    "North Macedonia": ["Macedonia"],
    "Northern Ireland": _BRITAIN,
    "Norwegian Nynorsk": ["Norwegian"],
    "Oceania": ["Australia"],
    "Persian": ["Farsi"],
    "Philippines": ["the Philippines"],
    "Portuguese": ["Brazilian Portuguese"],
    "Russia": ["Russian Federation", "the Russian Federation"],
    "Scotland": _BRITAIN,
    "South Korea": ["Korea", "Republic of Korea"],
    "Swaziland": ["Eswatini"],
    "Turkey": ["Türkiye"],
    "United Arab Emirates": ["UAE", "the United Arab Emirates", "the UAE"],
    "United Kingdom": [*_BRITAIN[1:], "England", "Scotland", "Wales", "Northern Ireland"],
    "United States": ["USA", "the USA", "U.S.", "the U.S.", "US", "the US", "the United States", "America"],
    "gray": ["grey"],
    "health care": ["healthcare"],
    "healthcare": ["health care"],
    "the Netherlands": ["Netherlands", "Holland"],
    "theatre": ["theater"],
}


@dataclass(frozen=True)
class EntityType:
    """Entities of one kind, what is known of them, and the prompts that ask for it.

    name: such as "city". attributes: entity -> attribute -> value; a value that is not known is absent. templates:
    attribute -> prompts with one `%s`; an attribute may have prompts though no entity has a value. other: prompts of
    the kind that ask for no attribute. entity_split: entity -> train, val or test; template_split: the same of every
    prompt, attribute or other. aliases: value -> other spellings that count as right.
    """

    name: str
    attributes: dict[str, dict[str, str]]
    templates: dict[str, list[str]]
    other: list[str]
    entity_split: dict[str, str]
    template_split: dict[str, str]
    aliases: dict[str, list[str]]


def content_hash(types: Sequence[EntityType]) -> str:
    """Return the SHA-256 of all that the types hold, as hex; it depends on no order of keys."""
    return value_hash([asdict(kind) for kind in types])


def counts(kind: EntityType) -> dict[str, Any]:
    """Return how much a type holds: `entities` by split, `templates` by attribute, `other`."""
    splits = list(kind.entity_split.values())
    return {
        "type": kind.name,
        "entities": {split: splits.count(split) for split in SPLITS},
        "templates": {attribute: len(prompts) for attribute, prompts in kind.templates.items()},
        "other": len(kind.other),
    }


def known_aliases(values: Iterable[str]) -> dict[str, list[str]]:
    """Return those of the values that have other spellings, with these."""
    return {value: _ALIASES[value] for value in sorted(set(values)) if value in _ALIASES}


def read_types(path: Path, names: Sequence[str]) -> list[EntityType]:
    """Read entity types from a folder or archive (.tgz, .tar.gz, .zip) with the authors' files.

    names: the types wanted, in this order; none: all there are, by name. Other types are not looked at.
    Raises UserError for a path, archive, name or file that can't be used.
    """
    path = path.expanduser()
    found = _folder(path) if path.is_dir() else _archive(path)
    there = sorted({match[1] for file in found for kind in _KINDS if (match := kind.fullmatch(file))})
    if not there:
        expected = ", ".join(name.format("city") for name in FILES.values())
        raise UserError(f"{path}: no RAVEL files in it; files such as {expected} are expected, not in a folder within")
    for name in names:
        if name not in there:
            raise UserError(f'types: "{name}" is not in {path}; it has {", ".join(there)}')
    return [_read_type(path, found, name) for name in dict.fromkeys(names or there)]


def _folder(path: Path) -> dict[str, bytes | Path]:
    return {file.name: file for file in path.iterdir() if file.is_file()}


def _archive(path: Path) -> dict[str, bytes | Path]:
    """Return the JSON files in an archive by their base names, read in memory."""
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; name a folder, .tgz, .tar.gz or .zip with RAVEL's JSON files")
    if not path.name.endswith((".tgz", ".tar.gz", ".zip")):
        raise UserError(f"{path}: not a folder, .tgz, .tar.gz or .zip; name one that holds RAVEL's JSON files")
    try:
        members = _zip_members(path) if path.suffix == ".zip" else _tar_members(path)
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError) as error:
        first = str(error).split("\n")[0]
        raise UserError(f"{path}: can't be read as an archive ({first}); download or pack it again") from error
    found: dict[str, bytes | Path] = {}
    for name, content in members:
        base = name.rsplit("/", 1)[-1]
        if base in found:
            raise UserError(f"{path}: holds {base} more than once; leave one")
        found[base] = content
    return found


def _tar_members(path: Path) -> list[tuple[str, bytes]]:
    members = []
    with tarfile.open(path, "r:gz") as archive:
        total = 0
        for member in archive:
            total += member.size
            _limit(path, total)
            if member.isfile() and _is_ours(member.name) and (file := archive.extractfile(member)):
                members.append((member.name, file.read()))
    return members


def _zip_members(path: Path) -> list[tuple[str, bytes]]:
    with zipfile.ZipFile(path) as archive:
        ours = [info for info in archive.infolist() if _is_ours(info.filename)]
        _limit(path, sum(info.file_size for info in ours))
        return [(info.filename, archive.read(info)) for info in ours]


def _is_ours(name: str) -> bool:
    return any(kind.fullmatch(name.rsplit("/", 1)[-1]) for kind in _KINDS)


def _limit(path: Path, size: int) -> None:
    if size > LIMIT:
        raise UserError(f"{path}: holds more than {LIMIT / 1e6:.0f} MB; RAVEL's files have a few: name the right one")


def _read_type(path: Path, found: dict[str, bytes | Path], name: str) -> EntityType:
    read = {part: _part(path / file.format(name), found) for part, file in FILES.items()}
    entity_split = read["entity_split"].splits()
    attributes = {}
    for entity, values in read["attributes"].objects("attributes"):
        if not entity.strip():
            raise UserError(f"{read['attributes'].path}: an entity has an empty name; give it one or take it out")
        if entity not in entity_split:
            raise UserError(f'{read["entity_split"].path}: no split for the entity "{entity}"; add one of {_either()}')
        known = {attribute: read["attributes"].text(value, entity, attribute) for attribute, value in values.items()}
        attributes[entity] = {key: _SAME_VALUE.get(value, value) for key, value in known.items() if value.strip()}
    template_split = read["template_split"].splits()
    templates = _templates(read["templates"], read["template_split"].path, template_split)
    for attribute in sorted({attribute for values in attributes.values() for attribute in values}):
        if not templates.get(attribute):
            raise UserError(f'{read["templates"].path}: no templates for the attribute "{attribute}"; add some')
    asking = dict.fromkeys(template for prompts in templates.values() for template in prompts)
    other = {template: split for template, split in _other(read["other"]) if template not in asking}
    return EntityType(
        name,
        attributes,
        templates,
        list(other),
        {entity: entity_split[entity] for entity in attributes},
        {**{template: template_split[template] for template in asking}, **other},
        _spellings(attributes),
    )


def _part(path: Path, found: dict[str, bytes | Path]) -> _Part:
    if path.name not in found:
        raise UserError(f"{path}: missing; a type needs all of {', '.join(FILES.values()).replace('{}', '*')}")
    source = found[path.name]
    try:
        if isinstance(source, Path):
            _limit(source, source.stat().st_size)
        content = json.loads((source.read_bytes() if isinstance(source, Path) else source).decode("utf-8-sig"))
        json.dumps(content, ensure_ascii=False).encode()  # no tokenizer takes half a surrogate pair
    except OSError as error:
        raise UserError(f"{path}: can't be read ({error.strerror}); check its permissions") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error}); download or write it again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: must hold a JSON object, not {_kind(content)}")
    if not content:
        raise UserError(f"{path}: the object is empty; download or write it again")
    return _Part(path, content)


def _templates(part: _Part, splits: Path, template_split: dict[str, str]) -> dict[str, list[str]]:
    templates = {}
    for attribute, prompts in part.content.items():
        if not isinstance(prompts, list):
            raise UserError(f'{part.path}: "{attribute}" must hold a list of templates, not {_kind(prompts)}')
        templates[attribute] = list(dict.fromkeys(part.template(prompt) for prompt in prompts))
        for prompt in templates[attribute]:
            if prompt not in template_split:
                raise UserError(f'{splits}: no split for the template "{prompt}"; add one of {_either()}')
    return templates


def _other(part: _Part) -> Iterable[tuple[str, str]]:
    """Yield the prompts that stand with no entity of their own, and their splits."""
    for template, values in part.objects("split and entity"):
        split = part.split(values.get("split"), template)
        if values.get("entity") is None:
            yield part.template(template), split


def _spellings(attributes: dict[str, dict[str, str]]) -> dict[str, list[str]]:
    aliases = known_aliases(value for values in attributes.values() for value in values.values())
    for values in attributes.values():  # where several languages are listed, each is right
        language = values.get("Language", "")
        if "," in language:
            aliases[language] = [part.strip() for part in language.split(",")]
    return aliases


@dataclass(frozen=True)
class _Part:
    """One file of a type: its content, a JSON object, and checks that name the file."""

    path: Path
    content: dict[str, Any]

    def objects(self, what: str) -> Iterable[tuple[str, dict[str, Any]]]:
        for key, values in self.content.items():
            if not isinstance(values, dict):
                raise UserError(f'{self.path}: "{key}" must hold an object with {what}, not {_kind(values)}')
            yield key, values

    def splits(self) -> dict[str, str]:
        return {key: self.split(value, key) for key, value in self.content.items()}

    def split(self, value: object, key: str) -> str:
        if value not in SPLITS:
            raise UserError(f'{self.path}: the split of "{key}" is {json.dumps(value)}; it must be one of {_either()}')
        return str(value)

    def text(self, value: object, key: str, field: str) -> str:
        if not isinstance(value, str):
            raise UserError(f'{self.path}: "{field}" of "{key}" must be text, not {_kind(value)}')
        return value

    def template(self, value: object) -> str:
        if not isinstance(value, str) or value.count("%s") != 1:
            raise UserError(f"{self.path}: the template {json.dumps(value)} must have %s once, for the entity")
        return value


def _kind(value: object) -> str:
    return {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}.get(
        type(value), "a number"
    )


def _either() -> str:
    return ", ".join(SPLITS)
