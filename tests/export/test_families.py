"""The tables of config keys agree with the config classes of transformers."""

import dataclasses
from typing import Any

import pytest

pytest.importorskip("transformers")

from transformers import AutoConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from bita.export.families import FAMILIES, FOREIGN_KEYS, NEUTRAL_KEYS

OURS_ALONE = {"head_dim"}  # classes without this field still read it from a config


def class_fields(family: str) -> dict[str, dataclasses.Field[Any]]:
    return {field.name: field for field in dataclasses.fields(CONFIG_MAPPING[family])}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_key_of_the_class_is_read_neutral_or_refused(family: str) -> None:
    unknown = class_fields(family).keys() - FAMILIES[family].keys.keys() - NEUTRAL_KEYS
    assert unknown <= FOREIGN_KEYS.keys()
    for name in unknown:  # the default of the class must not be refused
        assert class_fields(family)[name].default in FOREIGN_KEYS[name]


@pytest.mark.parametrize("family", FAMILIES)
def test_only_keys_of_the_class_are_read(family: str) -> None:
    read = FAMILIES[family].keys
    assert read.keys() - class_fields(family).keys() <= OURS_ALONE
    assert not read.keys() & NEUTRAL_KEYS
    assert not read.keys() & FOREIGN_KEYS.keys()


@pytest.mark.parametrize(
    ("family", "name"),
    [(family, name) for family in FAMILIES for name in FAMILIES[family].keys],
)
def test_defaults_and_null_values_agree_with_the_class(family: str, name: str) -> None:
    key, field = FAMILIES[family].keys[name], class_fields(family).get(name)
    if field is None:
        assert key.default is None
        return
    assert (type(key.default), key.default) == (type(field.default), field.default)
    try:
        AutoConfig.for_model(family, **{name: None})
        takes_null = True
    except Exception:  # transformers wraps the ValueError of its validation
        takes_null = False
    assert key.nullable == takes_null


@pytest.mark.parametrize("family", FAMILIES)
def test_rope_theta_agrees_with_the_class(family: str) -> None:
    if not FAMILIES[family].nested_rope:
        config = CONFIG_MAPPING[family]()
        assert config.rope_parameters["rope_theta"] == FAMILIES[family].default_theta
