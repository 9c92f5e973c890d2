"""What is installed fits what is declared: pins and ranges, cards and configs, templates, the README."""

import ast
import fnmatch
import importlib.metadata
import re
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from partialseg import __version__
from partialseg.data.cards import read_card, shipped_cards
from partialseg.training.config import read_config
from partialseg.training.network_config import NETWORK_CONFIGS

ROOT = Path(__file__).resolve().parents[1]
#: Extras with peers to compare with, and wheels for GPUs: they are not part of the environment that is tested.
UNPINNED_EXTRAS = {"bench", "gpu"}


def setup_arguments() -> dict[str, ast.expr]:
    """The keyword arguments of the call of `setup` in setup.py, which is not run."""
    tree = ast.parse((ROOT / "setup.py").read_text(encoding="utf-8"))
    (setup,) = (
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "setup"
    )
    return {keyword.arg: keyword.value for keyword in setup.keywords}


def declared() -> list[Requirement]:
    """All that setup.py requires, but for the extras that are not pinned."""
    arguments = setup_arguments()
    extras = ast.literal_eval(arguments["extras_require"])
    assert set(extras) > UNPINNED_EXTRAS
    wanted = ast.literal_eval(arguments["install_requires"])
    for name, requirements in extras.items():
        wanted += [] if name in UNPINNED_EXTRAS else requirements
    return [Requirement(text) for text in wanted]


def pins() -> dict[str, str]:
    """Name and version of each line of constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    requirements = [Requirement(line) for line in lines if line and not line.startswith("#")]
    for requirement in requirements:
        assert re.fullmatch(r"==[^,*]+", str(requirement.specifier)), (
            f"{requirement} is not one exact version"
        )
    found = {canonicalize_name(r.name): str(r.specifier).removeprefix("==") for r in requirements}
    assert len(found) == len(requirements), "a package is pinned twice"
    return found


@pytest.mark.parametrize("requirement", declared(), ids=str)
def test_pin_satisfies_the_range_in_setup(requirement):
    pin = pins().get(canonicalize_name(requirement.name))
    assert pin is not None, f"constraints.txt does not pin {requirement.name}"
    assert requirement.specifier.contains(pin), f"constraints.txt pins {pin}, setup.py wants {requirement}"


def test_environments_are_made_from_the_pins_with_a_python_that_setup_allows():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    python, _, pip = environment["dependencies"]
    assert pip["pip"][0] == "-c constraints.txt"
    assert any(entry.startswith("-e .") for entry in pip["pip"])
    allowed = SpecifierSet(ast.literal_eval(setup_arguments()["python_requires"]))
    assert allowed.contains(python.removeprefix("python="))
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    installs = [line for line in makefile.splitlines() if "pip install" in line]
    assert installs
    assert all("-c constraints.txt" in line for line in installs)


def test_versions_agree():
    assert ast.literal_eval(setup_arguments()["version"]) == __version__
    assert importlib.metadata.version("partialseg") == __version__
    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_every_card_is_found_by_its_name():
    names = sorted(path.stem for path in (ROOT / "data_cards").glob("*.md"))
    assert sorted(shipped_cards()) == names
    assert set(names) >= {"btcv", "kits19", "msd_liver", "msd_pancreas", "msd_spleen"}
    assert [read_card(name).name for name in names] == names


def test_every_config_is_found_by_its_name():
    names = sorted(path.stem for path in (ROOT / "configs").glob("*.yaml"))
    assert set(names) >= {"demo", "paper", "tiny"}
    assert [read_config(name).name for name in names] == names


def test_every_network_has_a_config_that_comes_with_the_package():
    kinds = {read_config(path).network.kind for path in (ROOT / "configs").glob("*.yaml")}
    assert kinds == set(NETWORK_CONFIGS)


def test_every_config_says_how_it_is_run_how_long_it_takes_and_what_to_expect():
    for path in (ROOT / "configs").glob("*.yaml"):
        head = path.read_text(encoding="utf-8")
        for word in ("Command", "Duration", "Expect"):
            assert re.search(rf"^# {word}: +\S", head, re.MULTILINE), f"{path.name} has no line for {word}"


def test_every_file_that_is_no_module_is_declared_as_package_data():
    arguments = setup_arguments()
    package_data = ast.literal_eval(arguments["package_data"])
    places = {
        **{name: ROOT / folder for name, folder in ast.literal_eval(arguments["package_dir"]).items()},
        **{
            ".".join(init.parent.relative_to(ROOT).parts): init.parent
            for init in (ROOT / "partialseg").rglob("__init__.py")
        },
    }
    files = {
        (package, path.name)
        for package, folder in places.items()
        for path in folder.iterdir()
        if path.is_file() and path.suffix not in (".py", ".pyc") and not path.name.startswith(".")
    }
    assert {path.name for path in (ROOT / "partialseg").rglob("*.jinja")} <= {name for _, name in files}
    undeclared = {
        (package, name)
        for package, name in files
        if not any(fnmatch.fnmatch(name, pattern) for pattern in package_data.get(package, []))
    }
    assert undeclared == set()


def test_every_pattern_of_package_data_matches_a_file():
    arguments = setup_arguments()
    folders = ast.literal_eval(arguments["package_dir"])
    for package, patterns in ast.literal_eval(arguments["package_data"]).items():
        folder = ROOT / folders.get(package, package.replace(".", "/"))
        for pattern in patterns:
            assert list(folder.glob(pattern)), f"{package}: nothing matches {pattern}"


def readme_blocks(language: str) -> list[str]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def test_python_of_the_readme_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = readme_blocks("python")
    assert blocks, "README.md has no ```python block"
    names = {"__name__": "readme"}
    for block in blocks:  # one after the other, as somebody would paste them
        exec(compile(block, "README.md", "exec"), names)


def test_card_of_the_readme_is_a_card(tmp_path):
    cards = [block for block in readme_blocks("yaml") if block.startswith("---")]
    assert cards, "README.md shows no data card"
    for block in cards:
        (tmp_path / "card.md").write_text(block, encoding="utf-8")
        assert read_card(tmp_path / "card.md").organs


def test_commands_of_the_readme_have_options_that_exist():
    import typer

    from partialseg.cli import app

    commands = typer.main.get_command(app).commands
    lines = [
        line.split("#")[0].split()
        for block in readme_blocks("bash")
        for line in block.splitlines()
        if line.startswith("partialseg ")
    ]
    assert lines, "README.md shows no command"
    for _, command, *arguments in lines:
        options = {name for parameter in commands[command].params for name in parameter.opts}
        assert {word for word in arguments if word.startswith("--")} <= options, command
