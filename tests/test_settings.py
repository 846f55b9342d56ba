"""Settings of the models: presets are of the public classes, and these say what each field is."""

import inspect
import json
import re
import typing
from dataclasses import FrozenInstanceError, asdict, fields, is_dataclass, replace

import pytest

import sctool.model
from sctool.model import (
    ACTINN,
    CICL,
    CLUSTER_METHODS,
    METHODS,
    SCDAE,
    SCDET,
    SCNYM,
    SSKM,
    AutoClassifier,
    AutoSettings,
    CellModel,
    CellTypistSettings,
    CICLSettings,
    ContrastiveClassifier,
    ContrastiveSettings,
    GroupNoveltyClassifier,
    GroupNoveltySettings,
    HierarchicalACTINNSettings,
    LogisticClassifier,
    LogisticSettings,
    NetworkSettings,
    SCDETSettings,
    SCNYMSettings,
    Settings,
    SSKMSettings,
)

OF_MODEL: dict[type[CellModel], type[Settings]] = {
    AutoClassifier: AutoSettings,
    LogisticClassifier: LogisticSettings,
    SCNYM: SCNYMSettings,
    SCDET: SCDETSettings,
    GroupNoveltyClassifier: GroupNoveltySettings,
    SSKM: SSKMSettings,
    ContrastiveClassifier: ContrastiveSettings,
    ACTINN: ContrastiveSettings,
    SCDAE: ContrastiveSettings,
    CICL: CICLSettings,
}
PUBLIC = [getattr(sctool.model, name) for name in sctool.model.__all__ if "Settings" in name]
every_model = pytest.mark.parametrize("cls", OF_MODEL, ids=lambda cls: cls.__name__)
every_public = pytest.mark.parametrize("settings", PUBLIC, ids=lambda cls: cls.__name__)
every_preset = pytest.mark.parametrize(
    ("cls", "name"),
    [(cls, name) for cls in OF_MODEL for name in cls.PRESETS],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)


def documented(cls: type) -> list[str]:
    """Names in the Parameters section of a class's own docstring."""
    _, title, section = inspect.cleandoc(cls.__doc__).partition("Parameters\n----------\n")
    if not title:  # the class adds no field
        return []
    section = re.split(r"\n\w[^\n]*\n-{3,}\n", section)[0]
    names = re.findall(r"^(\S.*)$", section, flags=re.MULTILINE)
    return [name.strip() for line in names for name in line.split(",")]


def inherited(cls: type) -> set[str]:
    return {f.name for base in cls.__mro__[1:] if is_dataclass(base) for f in fields(base)}


def test_the_registries_models_are_those_that_are_looked_at():
    assert {*METHODS.values(), *CLUSTER_METHODS.values()} == set(OF_MODEL)
    of_others = {CellTypistSettings, HierarchicalACTINNSettings}
    assert {*OF_MODEL.values(), Settings, NetworkSettings, *of_others} == set(PUBLIC)


@every_preset
def test_a_preset_is_of_the_public_class(cls, name):
    assert type(cls.PRESETS[name]) is OF_MODEL[cls]


@every_model
def test_there_is_a_default_and_the_model_says_of_which_class_its_settings_are(cls):
    assert "default" in cls.PRESETS
    assert typing.get_type_hints(cls)["settings_"] is OF_MODEL[cls]
    assert f":class:`{OF_MODEL[cls].__name__}`" in cls.__doc__
    for name in cls.PRESETS:
        assert f'"{name}"' in cls.__doc__


@every_public
def test_every_field_is_documented_by_the_class_that_adds_it(settings):
    own = {f.name for f in fields(settings)} - inherited(settings)
    names = documented(settings)
    assert own <= set(names), own - set(names)
    assert len(set(names)) == len(names)


@every_public
def test_nothing_is_documented_that_is_no_field(settings):
    assert set(documented(settings)) <= {f.name for f in fields(settings)}


@every_public
def test_settings_cannot_be_changed_in_place(settings):
    with pytest.raises(FrozenInstanceError):
        settings().n_top_genes = 3


@every_preset
def test_a_preset_survives_json(cls, name):
    preset = cls.PRESETS[name]
    read = json.loads(json.dumps(asdict(preset)))
    assert replace(cls.PRESETS["default"], **read) == preset
