"""Every field of a config, as the page docs/config.md: `python -m partialseg.training.config_page > docs/config.md`.

Made of the sections themselves: what a field may hold and its default are pydantic's, what it means is in docstrings.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

from pydantic import BaseModel

from partialseg.data.augmentation.config import AugmentationConfig, Chance, MirrorConfig
from partialseg.losses import PRESETS
from partialseg.models import NETWORKS
from partialseg.training.config import (
    OptimizerConfig,
    ScheduleConfig,
    StageConfig,
    TrainingConfig,
    ValidationConfig,
)
from partialseg.training.loss_config import LOSS_CONFIGS
from partialseg.training.network_config import NETWORK_CONFIGS

_TOP = """# The fields of a config

Made by `python -m partialseg.training.config_page`; a test keeps it true. A config is a YAML file; what it does not
name is as in the column "default". `configs/` has complete ones (`default`, `paper`, `demo`, `tiny`;
those of other networks: `pipo_fan`, `conditioned`, `dynamic_head`), and `RUN/config.yaml` has every value of a run
spelled out. A field that does not exist, or a value that it cannot have, is refused with its line.

```yaml
name: mine
patch_size: [48, 160, 160]
network: {deep_supervision: true}
optimizer: {learning_rate: 1.0e-3}
stages:
  - {name: all, datasets: all, epochs: 100, patches_per_dataset: 250}
```
"""
#: Heading, the section, and where else its fields are described.
_SECTIONS: tuple[tuple[str, type[BaseModel], Any], ...] = (
    ("The config", TrainingConfig, None),
    ("`stages`: a list of", StageConfig, None),
    ("`optimizer`", OptimizerConfig, None),
    ("`schedule`, also of a stage", ScheduleConfig, None),
    ("`validation`", ValidationConfig, None),
    ("`augmentation`", AugmentationConfig, None),
    ("`augmentation`: a transform", Chance, None),
    ("`augmentation.mirror`", MirrorConfig, None),
    *((f"`network: {{kind: {kind}}}`", model, NETWORKS[kind]) for kind, model in NETWORK_CONFIGS.items()),
    *((f"`losses: {{preset: {name}}}`", model, PRESETS[name]) for name, model in LOSS_CONFIGS.items()),
)


def config_page() -> str:
    """The page, Markdown."""
    parts = [_TOP]
    for heading, section, described in _SECTIONS:
        meanings = _meanings(section, described)
        schema = section.model_json_schema()
        rows = [
            f"| `{name}` | {_words(field, schema)} | {_default(section, name)} | {meanings.get(name, '')} |"
            for name, field in schema["properties"].items()
        ]
        about = inspect.cleandoc(section.__doc__ or "").partition("\n\n")[0]
        head = ["| field | value | default | |", "|---|---|---|---|"]
        parts.append("\n".join([f"## {heading}", "", " ".join(about.split()), "", *head, *rows]) + "\n")
    return "\n".join(parts)


def _meanings(section: type[BaseModel], described: Any) -> dict[str, str]:
    """What fields mean: by the docstrings of the section and those that it comes from, else of what takes them."""
    found: dict[str, str] = {}
    if described is not None:
        found |= _entries(described.__doc__ or "", "Args")
    for owner in reversed(section.__mro__):
        if issubclass(owner, BaseModel) and owner.__module__.startswith("partialseg"):
            found |= _entries(owner.__doc__ or "", "Attributes")
    return found


def _entries(docstring: str, part: str) -> dict[str, str]:
    r"""Names and texts of a part of a docstring in Google's style.

    Example:
        >>> _entries("What.\n\nArgs:\n    a, b: One\n        and all.\n    c: Two.\n", "Args")
        {'a': 'One and all.', 'b': 'One and all.', 'c': 'Two.'}
    """
    block = re.search(rf"^{part}:\n((?:    .*\n|\n)+)", inspect.cleandoc(docstring) + "\n", re.MULTILINE)
    entries: dict[str, str] = {}
    for names, text in re.findall(
        r"^    (\w+(?:, \w+)*): ((?:.*\n)(?:        .*\n|\n)*)", block[1] if block else "", re.MULTILINE
    ):
        meaning = " ".join(text.split()).replace("|", "\\|").replace("See their classes", "See below")
        meaning = re.sub(r"`?\bNone\b`?", "`null`", meaning)
        entries |= dict.fromkeys(names.split(", "), meaning)
    return entries


def _words(field: dict[str, Any], schema: dict[str, Any]) -> str:
    """What a field may hold, from its JSON schema."""
    if "$ref" in field or "oneOf" in field:
        return "see below"
    if "anyOf" in field:
        return " or ".join(dict.fromkeys(_words(choice, schema) for choice in field["anyOf"]))
    if "const" in field or "enum" in field:
        return ", ".join(f"`{choice}`" for choice in field.get("enum", [field.get("const")]))
    if "prefixItems" in field:
        return f"{len(field['prefixItems'])} of: {_words(field['prefixItems'][0], schema)}"
    if field.get("type") == "array":
        return f"list of: {_words(field['items'], schema)}"
    kinds = {"integer": "whole number", "number": "number", "boolean": "`true`, `false`", "string": "text"}
    kinds |= {"null": "`null`", "object": "`name: value` lines"}
    limits = {
        "minimum": "from {}",
        "exclusiveMinimum": "above {}",
        "maximum": "to {}",
        "exclusiveMaximum": "below {}",
    }
    bounds = [words.format(_as_yaml(field[limit])) for limit, words in limits.items() if limit in field]
    return " ".join([kinds[field["type"]], *bounds])


def _default(section: type[BaseModel], name: str) -> str:
    """The default as YAML has it; of a section that is described below, nothing."""
    field = section.model_fields[name]
    if field.is_required():
        return "must be given"
    value = field.default
    if isinstance(value, Chance):
        return f"`{{probability: {value.probability}, range: {list(value.range)}}}`"
    if isinstance(value, BaseModel):
        return ""
    if name == "stages":
        return "the paper's two"
    return f"`{_as_yaml(value)}`"


def _as_yaml(value: Any) -> str:
    """A value on one line.

    Example:
        >>> _as_yaml(((1, 2), None, True, "full")), _as_yaml("")
        ('[[1, 2], null, true, full]', "''")
    """
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_as_yaml, value))}]"
    if isinstance(value, float):
        return f"{value:g}"
    special = {"None": "null", "True": "true", "False": "false", "": "''"}
    return special.get(str(value), str(value))


if __name__ == "__main__":
    print(config_page(), end="")
